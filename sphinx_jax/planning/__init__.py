"""Memory, FLOP, traffic and time of a run on a TPU slice, before anything is allocated.

Bytes are exact where shapes and shardings determine them. The rest is the compiler's answer (libtpu
compiles for slices that are not present) or, without it, an estimate that is labelled as one.
"""

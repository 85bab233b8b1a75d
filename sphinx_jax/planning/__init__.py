"""What a run needs of a slice that is not there: memory, arithmetic, traffic and time, before anything is allocated.

Goals: exact where shapes and layouts say it, the compiler's own answer where it can be asked (libtpu compiles for absent
slices), and an estimate that is called one everywhere else.
"""

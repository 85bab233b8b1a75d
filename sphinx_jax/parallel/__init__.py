"""The device mesh, the sharding rules of parameters and batches, and runs of several processes.

One code path serves one device and a pod. The sharding of a parameter follows from the names of
its dimensions, which are given where the parameter is created. Large parameters that end up
replicated are logged.
"""

"""The mesh, and where everything lies on it.

Goals: one code path for one device and for a pod; the layout of a parameter follows from the names of its dimensions,
given where the parameter is made; nothing is replicated or left unsplit without a word.
"""

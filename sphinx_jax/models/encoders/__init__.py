"""Visual encoders of CLIP-normalized views float32[B,Y,X,3].

An encoder returns a class token [B,E] and a feature map [B,G,G,E]. The Q-Former returns query
tokens.
"""

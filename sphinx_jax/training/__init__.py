"""What one update is: state, loss, optimizer, step; and what a run says about itself.

Goals: frozen parameters cost no gradient, no moments and no precision; the loss is a mean over the tokens of the global
batch, however the batch is cut; a run says per task what it learns, and stops at the first number that is not finite.
"""

"""One update of a run: state, loss, optimizer and step; and the metrics that a run writes.

Frozen parameters cost no gradient and no moments, and are stored in the compute dtype. The loss is
a mean over the tokens of the global batch, however the batch is split. Metrics are written per
task. A run stops at the first loss or gradient that is not finite.
"""

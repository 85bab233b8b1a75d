"""A fake `gcloud compute tpus`.

It records its calls, keeps one slice in a folder, and runs ssh commands in a local shell. Tests
configure it with files in the folder $FAKE: `hosts` (workers of a slice), `queue` (states of a
request, one per call of describe), `refusals` (number of creations that fail first), `preempted`
(if it exists, the slice is gone) and `unreachable` (if it exists, the next ssh fails).
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

FAKE = pathlib.Path(os.environ['FAKE'])


def read(name, default=''):
  path = FAKE / name
  return path.read_text() if path.exists() else default


def fail(message):
  print(f'ERROR: (gcloud.compute.tpus) {message}', file=sys.stderr)
  sys.exit(1)


def create(kind):
  refusals = int(read('refusals', '0'))
  if refusals:
    (FAKE / 'refusals').write_text(str(refusals - 1))
    fail('There is no more capacity in the zone')
  if (FAKE / 'slice').exists():
    fail('ALREADY_EXISTS')
  (FAKE / 'slice').write_text(kind)
  (FAKE / 'waiting').write_text(read('queue'))


def delete(kind):
  if read('slice') != kind:
    fail('NOT_FOUND: Resource was not found')
  (FAKE / 'slice').unlink()
  (FAKE / 'preempted').unlink(missing_ok=True)
  for worker in FAKE.glob('worker-*'):
    shutil.rmtree(worker)  # The disks are deleted with the slice.


def describe(kind, field):
  if not (FAKE / 'slice').exists() or (kind == 'queued-resources' and read('slice') != kind):
    fail('NOT_FOUND: Resource was not found')
  gone = (FAKE / 'preempted').exists()
  if field == 'state.state':
    state, *rest = read('waiting').split() or ['SUSPENDED' if gone else 'ACTIVE']
    (FAKE / 'waiting').write_text(' '.join(rest))
    print(state)
  elif field == 'state':
    print('PREEMPTED' if gone else 'READY')
  elif field == 'networkEndpoints[].ipAddress':
    print(';'.join(f'10.0.0.{host}' for host in range(hosts())))
  else:
    print('no such quota')


def hosts():
  return int(read('hosts', '1'))


def home(worker):
  if (FAKE / 'preempted').exists() or not (FAKE / 'slice').exists():
    print('ssh: connect to host 10.0.0.1 port 22: Connection timed out', file=sys.stderr)
    sys.exit(255)
  if worker == 'all' and hosts() > 1:
    fail('The SSH key is not in the agent')  # As gcloud does without an ssh agent.
  path = FAKE / f'worker-{worker}'
  path.mkdir(exist_ok=True)
  return path


def main(kind, verb, *arguments):
  with open(FAKE / 'calls', 'a') as calls:
    calls.write(json.dumps([kind, verb, *arguments]) + '\n')
  names = [argument for argument in arguments if not argument.startswith('--')]
  flags = dict(
    argument[2:].partition('=')[::2] for argument in arguments if argument.startswith('--')
  )
  if verb == 'create':
    create(kind)
  elif verb == 'delete':
    delete(kind)
  elif verb == 'describe':
    describe(kind, flags['format'].removeprefix('value(').removesuffix(')'))
  elif verb == 'scp':
    shutil.copy(names[0], home(flags['worker']) / names[1].partition(':')[2])
  elif verb == 'ssh':
    place = home(flags['worker'])
    if ' run ' in flags['command'] and (FAKE / 'unreachable').exists():
      (FAKE / 'unreachable').unlink()
      fail('Could not fetch the resource: Unable to find the server')
    environment = {**os.environ, 'HOME': str(place), 'WORKER': flags['worker']}
    code = subprocess.run(['bash', '-c', flags['command']], cwd=place, env=environment).returncode
    sys.exit(255 if (FAKE / 'preempted').exists() else code)
  else:
    fail(f'no such command: {verb}')


def storage(verb, *arguments):
  """`gcloud storage rsync` from a bucket, in a worker's shell."""
  with open(FAKE / 'fetched', 'a') as fetched:
    fetched.write(' '.join([os.environ['WORKER'], verb, *arguments]) + '\n')
  pathlib.Path(arguments[-1]).mkdir(exist_ok=True)
  (pathlib.Path(arguments[-1]) / 'vqa.jsonl').write_text('a line')


if __name__ == '__main__':
  if sys.argv[1] == 'storage':
    storage(*sys.argv[2:])
  else:
    main(*sys.argv[3:])  # The arguments after `compute tpus`.

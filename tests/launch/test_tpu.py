"""launch/tpu_vm.sh and launch/tpu_queued.sh with a fake cloud: create, run, restart, delete."""

import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPTS = {'tpu_vm.sh': 'tpu-vm', 'tpu_queued.sh': 'queued-resources'}  # What each one creates.
SLICE = ('--name=mine', '--zone=here', '--project=ours', '--type=v4-8')
TRAIN = ('--', 'python', '-m', 'sphinx_jax.train', '--config=configs/stage2.py:13b,1k')

both = pytest.mark.parametrize('script', SCRIPTS)


def test_shellcheck_accepts_the_scripts():
  shellcheck = shutil.which('shellcheck') or str(pathlib.Path(sys.executable).parent / 'shellcheck')
  scripts = [*sorted((ROOT / 'launch').glob('*.sh')), ROOT / '.ci' / 'run']
  done = subprocess.run([shellcheck, *scripts], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


# Settings.


@both
def test_unknown_or_missing_settings_are_named(script, cloud):
  for arguments, parts in [
    (['--nmae=x'], ["got '--nmae=x'", '--name= --zone=']),
    ([*TRAIN], ['got no --name= --zone= --project= --type=', 'TPU_NAME']),
    (['--name=mine', '--project=ours', *TRAIN], ['got no --zone= --type=']),
    (['--name=mine', '--zone=here', '--delete'], ['got no --project=']),
    ([*SLICE, '--workdir=gs://b/r'], ['got no command', 'after --']),
    ([*SLICE, '--workdir=/tmp/run', *TRAIN], ["--workdir='/tmp/run'", 'gs://BUCKET/RUN']),
    ([*SLICE, *TRAIN], ['got no --workdir=gs://']),
    (
      [*SLICE, '--workdir=gs://b/r', '--data=data', *TRAIN],
      ["--data='data'", 'copy it to a bucket'],
    ),
    (
      [*SLICE, '--type=v5e-16', '--workdir=gs://b/r', *TRAIN],
      ["--type: got 'v5e-16'", 'v5litepod-N'],
    ),
  ]:
    code, output, messages = cloud.launch(script, *arguments)
    assert code == 2 and not output
    assert re.fullmatch(r'error: .+: got .+, expected .+; .+\n', messages)
    assert all(part in messages for part in parts), messages
  assert not cloud.calls()


@both
def test_help_lists_every_setting(script, cloud):
  code, output, _ = cloud.launch(script, '--help')
  assert code == 0
  assert all(
    f'--{name}' in output
    for name in 'name zone project type version workdir data spot keep delete dry_run'.split()
  )
  assert 'BASH_SOURCE' not in output


def test_settings_come_from_the_environment_and_flags_take_precedence(cloud):
  environment = dict(
    TPU_NAME='other',
    TPU_ZONE='there',
    TPU_PROJECT='ours',
    TPU_TYPE='v6e-16',
    TPU_WORKDIR='gs://b/r',
    TPU_SPOT='1',
  )
  _, output, _ = cloud.launch('tpu_vm.sh', '--name=mine', '--dry_run', *TRAIN, **environment)
  create = next(line for line in output.splitlines() if ' create ' in line)
  assert create == (
    'gcloud compute tpus tpu-vm create mine --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e '
    '--spot --zone=there --project=ours --quiet'
  )


@pytest.mark.parametrize(
  'accelerator, version',
  [
    ('v5p-128', 'v2-alpha-tpuv5'),
    ('v5litepod-16', 'v2-alpha-tpuv5-lite'),
    ('v4-8', 'tpu-ubuntu2204-base'),
  ],
)
def test_a_type_has_its_runtime_version(accelerator, version, cloud):
  arguments = (*SLICE, f'--type={accelerator}', '--workdir=gs://b/r', '--dry_run')
  _, output, _ = cloud.launch('tpu_queued.sh', *arguments, *TRAIN)
  assert f'--runtime-version={version} ' in output
  _, output, _ = cloud.launch('tpu_queued.sh', *arguments, '--version=special', *TRAIN)
  assert '--runtime-version=special ' in output


@both
def test_dry_run_prints_every_command_and_runs_none(script, cloud):
  code, output, _ = cloud.launch(
    script, *SLICE, '--spot', '--workdir=gs://b/r', '--dry_run', *TRAIN
  )
  lines = output.splitlines()
  commands = [line.split()[3:5] for line in lines if not line.startswith('# ')]
  assert code == 0 and not cloud.calls() and not (cloud.repository / 'logs').exists()
  kinds = [SCRIPTS[script], 'tpu-vm']
  in_order = [
    (kinds[0], 'describe'),
    (kinds[0], 'create'),
    ('tpu-vm', 'describe'),
    ('tpu-vm', 'ssh'),
    ('tpu-vm', 'scp'),
    ('tpu-vm', 'ssh'),
    ('tpu-vm', 'ssh'),
    ('tpu-vm', 'ssh'),
    (kinds[0], 'delete'),
  ]
  rest = iter(tuple(command) for command in commands)
  assert all(step in rest for step in in_order), commands
  assert all(line.startswith('gcloud compute tpus ') for line in lines if not line.startswith('# '))
  run = next(line for line in lines if 'sphinx_jax.train' in line)
  assert 'SPHINX_JAX_DISTRIBUTED=1' in run and '--workdir=gs://b/r' in run
  # The printed commands are those of a real run.
  cloud.run(script, 'true', '--spot', '--workdir=gs://b/r')
  printed = {line for line in lines if ' create ' in line or ' delete ' in line}
  called = {
    f'gcloud compute tpus {" ".join(call)}'
    for call in [*cloud.calls('create'), *cloud.calls('delete')]
  }
  assert printed == called


# A run.


@both
def test_a_run_creates_its_slice_and_deletes_it(script, cloud):
  cloud.configure(hosts=2)
  commit = subprocess.check_output(
    ['git', 'rev-parse', 'HEAD'], cwd=cloud.repository, text=True
  ).strip()
  seen = cloud.fake / 'seen'
  command = (
    f'echo "$WORKER $SPHINX_JAX_DISTRIBUTED $SPHINX_JAX_COMMIT $*" >> {seen}; ls; '
    f'cp "$HOME/pip" {cloud.fake}/pip'
  )
  code, output, messages = cloud.run(script, command, '--workdir=gs://bucket/a run')
  assert code == 0, messages
  # The same command, with the workdir, on every worker.
  assert sorted(seen.read_text().splitlines()) == [f'{worker} 1 {commit} ' for worker in (0, 1)]
  started = [word for call in cloud.calls('ssh') for word in call if ' run bash' in word]
  assert len(started) == 2 and all('--workdir=gs://bucket/a\\ run' in word for word in started)
  # Installed from the repository with the pinned versions, without the tests.
  installed = (cloud.fake / 'pip').read_text()
  assert installed.count('\n') == 1
  assert '--constraint constraints.txt' in installed and '.[tpu]' in installed
  for worker in (0, 1):
    assert {'launch', 'setup.py', 'constraints.txt'} < set(cloud.log(worker).splitlines())
    assert 'tests' not in cloud.log(worker).splitlines()
  assert '[0] setup.py' in output and '[1] setup.py' in output
  # The slice is deleted.
  assert not (cloud.fake / 'slice').exists() and cloud.calls()[-1][1] == 'delete'
  assert len(cloud.calls('create')) == 1


def test_a_training_run_uses_the_installed_python(cloud):
  code, _, messages = cloud.launch('tpu_queued.sh', *SLICE, '--workdir=gs://bucket/run', *TRAIN)
  assert code == 0, messages
  trained = (cloud.fake / 'trained').read_text()
  assert (
    trained == '-m sphinx_jax.train --config=configs/stage2.py:13b,1k --workdir=gs://bucket/run\n'
  )


def test_data_come_from_a_bucket_and_stay_when_the_code_is_replaced(cloud):
  cloud.configure(hosts=2)
  for _ in range(2):
    code, _, messages = cloud.run(
      'tpu_vm.sh', 'cat data/vqa.jsonl && echo kept >> data/mark', '--keep', '--data=gs://b/my data'
    )
    assert code == 0, messages
  fetched = sorted((cloud.fake / 'fetched').read_text().splitlines())
  assert fetched == [f'{worker} rsync --recursive gs://b/my data data' for worker in (0, 0, 1, 1)]
  assert 'a line' in cloud.log(1)
  assert (cloud.fake / 'worker-1' / 'sphinx_jax' / 'data' / 'mark').read_text() == 'kept\nkept\n'


def test_each_worker_has_its_own_log(cloud):
  cloud.configure(hosts=3)
  code, output, _ = cloud.run(
    'tpu_vm.sh', 'echo "from $WORKER"; echo "error of $WORKER" >&2; printf "no newline"'
  )
  assert code == 0
  for worker in range(3):
    assert cloud.log(worker).splitlines()[-4:] == [
      f'from {worker}',
      f'error of {worker}',
      'no newline',
      'exit code 0',
    ]
    assert f'[{worker}] from {worker}\n' in output
  assert '[1] from 0' not in output


def test_a_dirty_tree_gives_a_warning_and_the_commit_is_sent(cloud):
  (cloud.repository / 'new.py').write_text('')
  code, output, messages = cloud.run('tpu_vm.sh', 'ls')
  assert code == 0 and 'new.py' not in output
  assert 'warning: 1 changed or new file(s) are not sent' in messages


def test_keep_leaves_the_slice_and_delete_deletes_it(cloud):
  code, _, messages = cloud.run('tpu_vm.sh', 'touch "$HOME/was_here"', '--keep')
  assert code == 0 and (cloud.fake / 'slice').exists()
  assert 'bash launch/tpu_vm.sh --name=mine --zone=here --project=ours --delete' in messages
  # The next start finds it, with what is installed there.
  code, _, _ = cloud.run(
    'tpu_vm.sh', 'test -f "$HOME/was_here" && cp "$HOME/pip" "$FAKE/pip"', '--keep'
  )
  assert code == 0 and len(cloud.calls('create')) == 1
  assert (cloud.fake / 'pip').read_text().count('\n') == 1
  code, _, _ = cloud.launch('tpu_vm.sh', '--name=mine', '--zone=here', '--project=ours', '--delete')
  assert code == 0 and not (cloud.fake / 'slice').exists()


@both
def test_deleting_a_missing_slice_is_an_error(script, cloud):
  code, _, messages = cloud.launch(
    script, '--name=mine', '--zone=here', '--project=ours', '--delete'
  )
  assert code != 0 and 'NOT_FOUND' in messages


# Failures.

COUNT = 'n=$(cat "$FAKE/runs.$WORKER" 2>/dev/null | wc -l); echo >> "$FAKE/runs.$WORKER"; '


def runs(cloud, worker=0):
  path = cloud.fake / f'runs.{worker}'
  return path.read_text().count('\n') if path.exists() else 0


@both
def test_a_preempted_slice_is_created_again_and_the_run_resumes(script, cloud):
  cloud.configure(hosts=2)
  # The slice is lost when both workers run the command: either may start first.
  preempt = (
    'for i in $(seq 500); do '
    'if [ $WORKER = 1 ] && [ -e "$FAKE/runs.0" ]; then touch "$FAKE/preempted"; fi; '
    '[ ! -e "$FAKE/preempted" ] || break; sleep 0.02; done; exit 1'
  )
  command = COUNT + f'if [ $n = 0 ]; then {preempt}; fi; echo resumed'
  code, output, messages = cloud.run(script, command, '--spot')
  assert code == 0, messages
  verbs = [call[1] for call in cloud.calls() if call[1] in ('create', 'delete', 'scp')]
  life = ['create', 'scp', 'scp', 'delete']
  assert verbs == life + life  # Installed again: the disks were new.
  assert all('--spot' in call for call in cloud.calls('create'))
  assert 'the slice is preempted' in messages
  assert '[0] resumed' in output and '[1] resumed' in output


def test_a_request_waits_in_the_queue(cloud):
  cloud.configure(queue='ACCEPTED WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES PROVISIONING')
  code, _, messages = cloud.run('tpu_queued.sh', 'true')
  assert code == 0 and len(cloud.calls('create')) == 1
  assert messages.count('the slice is waiting') == 1  # Each state is printed once.
  create = cloud.calls('create')[0]
  assert create[:3] == ['queued-resources', 'create', 'mine'] and '--node-id=mine' in create
  assert '--force' in cloud.calls('delete')[0]


def test_a_failed_request_is_made_again(cloud):
  cloud.configure(queue='WAITING_FOR_RESOURCES FAILED')
  code, _, messages = cloud.run('tpu_queued.sh', 'true', TPU_QUICK_FAILURES='3')
  # It fails each time. The script gives up after three and prints the reason.
  assert code == 1 and len(cloud.calls('create')) == 3
  assert 'the request failed: no such quota' in messages and 'no slice after 3 tries' in messages


@both
def test_no_capacity_is_tried_again_a_bounded_number_of_times(script, cloud):
  cloud.configure(refusals=2)
  code, _, messages = cloud.run(script, 'true')
  assert code == 0 and len(cloud.calls('create')) == 3 and 'no more capacity' in messages
  cloud.configure(refusals=100)
  code, _, messages = cloud.run(script, 'true')
  assert code == 1 and len(cloud.calls('create')) == 3 + 5 and 'no slice after 5 tries' in messages


@pytest.mark.parametrize('first', [143, 75, 134, 137, 255])
def test_these_codes_restart_the_command_on_the_same_slice(first, cloud):
  code, _, messages = cloud.run('tpu_vm.sh', COUNT + f'[ $n = 0 ] && exit {first}; exit 0')
  assert code == 0 and runs(cloud) == 2, messages
  assert len(cloud.calls('create')) == 1 and len(cloud.calls('scp')) == 1
  assert f'exit code {first}; restarting' in messages


@pytest.mark.parametrize('final', [2, 130, 1])
def test_these_codes_end_the_script(final, cloud):
  code, _, _ = cloud.run('tpu_vm.sh', COUNT + f'exit {final}')
  assert code == final and runs(cloud) == 1
  assert not (cloud.fake / 'slice').exists()


def test_a_run_killed_by_a_signal_is_restarted(cloud):
  code, _, messages = cloud.run('tpu_vm.sh', COUNT + '[ $n = 0 ] && kill -KILL $$; exit 0')
  assert code == 0 and runs(cloud) == 2 and 'exit code 137' in messages


def test_a_broken_command_is_not_restarted_forever(cloud):
  code, _, messages = cloud.run('tpu_vm.sh', COUNT + 'exit 75', TPU_QUICK_FAILURES='3')
  assert code == 75 and runs(cloud) == 3 and '3 failures, each within 600 s' in messages
  assert not (cloud.fake / 'slice').exists()


def test_failures_after_a_long_run_are_not_counted(cloud):
  command = COUNT + '[ $n -lt 3 ] && exit 143; exit 0'
  code, _, messages = cloud.run('tpu_vm.sh', command, TPU_QUICK_FAILURES='2', TPU_QUICK_SECONDS='0')
  assert code == 0 and runs(cloud) == 4, messages


# Runs until SIGTERM, then saves and exits, as `train` does.
TRAINS = (
  'trap "echo saved >> $FAKE/saved.$WORKER; exit 143" TERM; touch "$FAKE/up.$WORKER"; '
  'while :; do sleep 0.02; done'
)


def test_when_one_worker_fails_the_others_are_stopped_first(cloud):
  cloud.configure(hosts=3)
  fails = 'until [ -e "$FAKE/up.0" ] && [ -e "$FAKE/up.2" ]; do sleep 0.02; done; exit 75'
  command = COUNT + f'[ $n = 0 ] || exit 0; [ $WORKER = 1 ] && {{ {fails}; }}; {TRAINS}'
  code, _, messages = cloud.run('tpu_vm.sh', command)
  assert code == 0, messages
  assert 'worker 1 ended with 75; stopping the others' in messages
  assert all((cloud.fake / f'saved.{worker}').read_text() == 'saved\n' for worker in (0, 2))
  assert [runs(cloud, worker) for worker in range(3)] == [2, 2, 2]


@pytest.mark.parametrize('other', [75, 134])
def test_an_error_to_fix_outweighs_the_codes_of_the_other_workers(other, cloud):
  cloud.configure(hosts=2)
  code, _, _ = cloud.run('tpu_vm.sh', COUNT + f'[ $WORKER = 0 ] && exit {other}; exit 2')
  assert code == 2 and runs(cloud, 0) == runs(cloud, 1) == 1


def test_a_run_that_ignores_sigterm_is_killed(cloud):
  cloud.configure(hosts=2)
  stubborn = 'trap "" TERM; touch "$FAKE/up.0"; echo $$ > "$FAKE/pid"; while :; do sleep 0.02; done'
  fails = 'until [ -e "$FAKE/up.0" ]; do sleep 0.02; done; exit 2'
  code, _, _ = cloud.run(
    'tpu_vm.sh', f'[ $WORKER = 1 ] && {{ {fails}; }}; {stubborn}', SPHINX_JAX_STOP_SECONDS='0.2'
  )
  assert code == 2
  assert not pathlib.Path('/proc', (cloud.fake / 'pid').read_text().strip()).exists()


@both
@pytest.mark.parametrize('number, expected', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_lets_every_worker_save(script, number, expected, cloud):
  cloud.configure(hosts=2)
  process = cloud.start(script, *SLICE, '--', 'bash', '-c', TRAINS)
  for worker in (0, 1):
    while not (cloud.fake / f'up.{worker}').exists():
      assert process.poll() is None
      time.sleep(0.02)
  process.send_signal(number)
  _, messages = process.communicate(timeout=180)
  assert process.returncode == expected, messages
  assert all((cloud.fake / f'saved.{worker}').read_text() == 'saved\n' for worker in (0, 1))
  assert cloud.calls()[-1][1] == 'delete' and 'deleting the slice' in messages


def test_a_slice_that_vanishes_silently_is_noticed(cloud):
  cloud.configure(hosts=2)
  silent = 'echo silent; while [ -e "$HOME" ]; do sleep 0.02; done'
  # The other worker has counted its run, too, before the slice vanishes.
  vanish = 'until [ -s "$FAKE/runs.0" ]; do sleep 0.02; done; touch "$FAKE/preempted"'
  command = COUNT + f'[ $n = 0 ] || exit 0; [ $WORKER = 0 ] || {{ {vanish}; }}; {silent}'
  code, _, messages = cloud.run('tpu_vm.sh', command, '--spot', TPU_LOOK_SECONDS='0')
  assert code == 0 and len(cloud.calls('create')) == 2, messages
  assert runs(cloud, 0) == runs(cloud, 1) == 2


def test_a_failure_of_gcloud_is_not_a_failure_of_the_command(cloud):
  cloud.configure(unreachable='')
  code, _, messages = cloud.run('tpu_vm.sh', COUNT + 'true')
  assert code == 0 and runs(cloud) == 1, messages
  assert 'Unable to find the server' in cloud.log(0) and 'exit code 255; restarting' in messages


def test_a_run_that_a_lost_connection_left_behind_is_stopped_before_the_next(cloud):
  lost = COUNT + '[ $n = 0 ] || exit 0; ' + TRAINS
  process = cloud.start('tpu_vm.sh', *SLICE, '--keep', '--', 'bash', '-c', lost)
  while not (cloud.fake / 'up.0').exists():
    assert process.poll() is None
    time.sleep(0.02)
  process.kill()  # As a closed laptop: the workers get no signal.
  code, _, messages = cloud.run('tpu_vm.sh', lost)
  process.communicate(timeout=180)
  assert code == 0 and (cloud.fake / 'saved.0').read_text() == 'saved\n', messages


def test_a_worker_with_an_old_python_gets_a_newer_one_from_uv(cloud):
  programs = cloud.fake.parent / 'bin'
  (programs / 'python3').rename(programs / 'python3.new')
  (programs / 'python3').write_text(f"""#!/usr/bin/env bash
case "$*" in
  '-m pip install --user --quiet uv') echo uv >> "$FAKE/uv" ;;
  '-m uv python install --quiet 3.11') echo python >> "$FAKE/uv" ;;
  '-m uv python find 3.11') echo {programs}/python3.new ;;
  *) exit 1 ;; # As Python 3.10 in the version check.
esac
""")
  (programs / 'python3').chmod(0o755)
  for name in ('python3.11', 'python3.12', 'python3.13'):
    (programs / name).write_text('#!/bin/sh\nexit 1\n')
    (programs / name).chmod(0o755)
  code, _, messages = cloud.run('tpu_vm.sh', 'cp "$HOME/pip" "$FAKE/pip"')
  assert code == 0, messages
  assert (cloud.fake / 'uv').read_text().split() == ['uv', 'python']
  assert '.[tpu]' in (cloud.fake / 'pip').read_text()

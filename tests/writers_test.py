"""Tests of `sidrec.writers`."""

import glob
import io
import json
import math

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from sidrec import types
from sidrec import writers


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _write(writer, first, last):
  for step in range(first, last + 1):
    writer.scalars(step, 'train', {'loss': np.float32(1 / step)})
    if step % 4 == 0:
      writer.scalars(step, 'valid', {'ranking/auc': step / 100})


def test_jsonl_is_one_object_a_line(tmp_path):
  path = tmp_path / 'run' / 'metrics.jsonl'
  writer = writers.JsonlWriter(str(path))
  writer.scalars(np.int32(3), 'test', {
      'a': np.float32(0.5), 'b': 2, 'c': math.nan, 'd': np.array(1)})
  assert _lines(path) == [  # Without a flush.
      {'step': 3, 'split': 'test', 'a': 0.5, 'b': 2, 'c': None, 'd': 1}]
  writer.close()
  writer.close()


def test_jsonl_killed_and_resumed_equals_unkilled(tmp_path):
  whole, killed = tmp_path / 'whole.jsonl', tmp_path / 'killed.jsonl'
  writer = writers.JsonlWriter(str(whole))
  _write(writer, 1, 12)
  writer.close()
  writer = writers.JsonlWriter(str(killed))
  _write(writer, 1, 4)
  saved = writer.num_lines
  assert saved == 5
  _write(writer, 5, 7)  # Not closed: killed.
  with killed.open('a') as file:
    file.write('{"step": 8, "spl')  # In the middle of a line.
  writer = writers.JsonlWriter(str(killed), keep=saved)
  _write(writer, 5, 8)
  saved = writer.num_lines
  _write(writer, 9, 9)
  writer = writers.JsonlWriter(str(killed), keep=saved)
  _write(writer, 9, 12)
  writer.close()
  assert killed.read_bytes() == whole.read_bytes()


def test_jsonl_fresh_run_starts_empty_and_bad_file_is_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  with pytest.raises(types.InputError, match='metrics.jsonl: row 1 '):
    writers.JsonlWriter(str(path), keep=3)
  assert 'nonsense' in path.read_text()
  writers.JsonlWriter(str(path)).close()
  assert not path.read_text()
  (tmp_path / 'file').write_text('')
  with pytest.raises(types.InputError, match='cannot be written'):
    writers.JsonlWriter(str(tmp_path / 'file' / 'metrics.jsonl'))


def test_jsonl_lines_that_are_not_as_they_were(tmp_path, caplog):
  path = tmp_path / 'metrics.jsonl'
  writer = writers.JsonlWriter(str(path))
  _write(writer, 1, 4)
  lines, crc = writer.num_lines, writer.crc
  writer.close()
  whole = path.read_bytes()
  for content, message in (
      (whole.replace(b'0.5', b'0.7'), 'damaged: its first 5 lines'),
      (whole[:-30], 'row 4 is not a line'), (whole[:60], 'row 1 is not'),
      (b'', 'has 0 of the 5 lines'), (b'\xff' + whole, 'row 0 is not'),
      (b'[]\n' * 5, 'row 0 is not')):
    path.write_bytes(content)
    with pytest.raises(types.InputError, match=message) as error:
      writers.JsonlWriter(str(path), lines, crc)
    assert '\n' not in str(error.value)
    assert path.read_bytes() == content
  path.write_bytes(whole + b'{"step": 5, "spl')
  again = writers.JsonlWriter(str(path), lines, crc)
  assert (again.num_lines, again.crc) == (lines, crc)
  assert path.read_bytes() == whole
  path.unlink()
  again = writers.JsonlWriter(str(path), lines, crc)
  assert again.num_lines == 0 and 'is gone' in caplog.text


def _events(directory):
  """Reads event files by their framing: length, crc, data, crc."""
  events = []
  for name in sorted(glob.glob(f'{directory}/*tfevents*')):
    data = open(name, 'rb').read()
    while data:
      size = int.from_bytes(data[:8], 'little')
      events.append(event_pb2.Event.FromString(data[12:12 + size]))
      data = data[16 + size:]
  return events


def test_tensorboard_purges_what_is_written_again(tmp_path):
  writer = writers.TensorBoardWriter(str(tmp_path))
  _write(writer, 1, 4)
  writer.close()
  values = {(e.step, v.tag): v.simple_value for e in _events(tmp_path)
            for v in e.summary.value}
  assert len(values) == 5
  assert values[2, 'train/loss'] == 0.5
  assert values[4, 'valid/ranking/auc'] == pytest.approx(0.04)
  writer = writers.TensorBoardWriter(str(tmp_path / 'again'), resume_step=2)
  writer.close()
  starts = [e.step for e in _events(tmp_path / 'again')
            if e.HasField('session_log')]
  assert starts == [3]


def test_progress_prints_plain_lines_to_a_file():
  stream = io.StringIO()
  bar = writers.ProgressBar(4, batch_size=8, stream=stream, seconds=0)
  _write(bar, 1, 4)
  bar.close()
  lines = stream.getvalue().splitlines()
  assert len(lines) == 4
  assert lines[1].startswith('step 2/4  loss 0.5  ')
  assert 'examples/s' in lines[1] and lines[3].endswith('0:00:00 left')


def test_progress_limits_its_lines_but_shows_the_last():
  stream = io.StringIO()
  bar = writers.ProgressBar(100, stream=stream, seconds=1000)
  for step in range(1, 101):
    bar.scalars(step, 'train', {})
  assert [x.split()[1] for x in stream.getvalue().splitlines()] == [
      '1/100', '100/100']


def test_progress_draws_a_bar_on_a_terminal():
  stream = io.StringIO()
  stream.isatty = lambda: True
  bar = writers.ProgressBar(4, first_step=1, batch_size=8, stream=stream)
  _write(bar, 2, 4)
  bar.message('step 4 valid: fine')
  bar.flush()
  bar.close()
  text = stream.getvalue()
  assert '4/4' in text and 'loss 0.25' in text and 'step 4 valid' in text


def test_multi_writer_and_table(tmp_path):
  paths = [tmp_path / 'a.jsonl', tmp_path / 'b.jsonl']
  writer = writers.MultiWriter(
      [writers.JsonlWriter(str(p)) for p in paths] + [writers.NullWriter()])
  writer.scalars(1, 'train', {'loss': 2.0})
  writer.flush()
  writer.close()
  assert _lines(paths[0]) == _lines(paths[1]) == [
      {'step': 1, 'split': 'train', 'loss': 2.0}]
  text = writers.table(
      [{'metric': 'ranking/auc', 'ours': 0.75, 'n': 3},
       {'metric': 'x', 'ours': None, 'n': 12}], ['metric', 'ours', 'n'])
  assert text == (
      'metric         ours   n\n'
      '-----------  ------  --\n'
      'ranking/auc  0.7500   3\n'
      'x                    12')

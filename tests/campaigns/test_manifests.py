"""What reading a list takes is measured in processes that read it as a run does."""

import sys

import pytest
from manifests import main


@pytest.mark.slow
def test_each_process_has_a_line_and_none_but_the_first_reads(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["manifests.py", "--rows", "200000", "--processes", "2"])
    main()
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| 200,000")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [cell[1] for cell in cells] == ["0", "1"]
    seconds, memory = ([float(cell[place].split()[0]) for cell in cells] for place in (2, 5))
    # To 0.1 s, and in MiB of which some come and go by themselves.
    assert seconds[1] < seconds[0] / 1.5 and memory[1] <= memory[0] + 5

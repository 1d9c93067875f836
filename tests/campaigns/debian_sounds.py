"""Make windows of five seconds of the sounds that Debian's packages hold, to pre-train on without labels.

    apt-get download PACKAGE ...                    # those of SPEECH and EFFECTS below
    dpkg-deb -x PACKAGE.deb FOLDER/PACKAGE          # each into a folder of its name
    python tests/campaigns/debian_sounds.py FOLDER --output data/sounds

Three hours: all effects, drums and instruments, and some minutes of the speech, of files that are drawn. At most 50 s
of a file are taken, silent ones are left out, and sounds of a package are joined and cut: no window is padding.
"""

import argparse
import random
import re
from pathlib import Path

import numpy as np
import soundfile

from modeling_ast import AudioError, load_waveform

RATE, WINDOW, LONGEST = 16000, 5 * 16000, 50 * 16000  # Hz, samples
SUFFIXES = (".wav", ".ogg", ".flac", ".mp3", ".aiff")
# Minutes of speech, and packages of other sounds.
SPEECH = {
    **{"asterisk-core-sounds-en-wav": 20, "asterisk-core-sounds-fr-wav": 7, "asterisk-core-sounds-ru-wav": 7},
    **{"klettres-data": 20, "fillets-ng-data-cs": 15, "fillets-ng-data-nl": 15, "tuxpaint-stamps-default": 8},
}
EFFECTS = ("hydrogen-drumkits", "megaglest-data", "scratch", "sonic-pi-samples", "tuxpaint-stamps-default")
EFFECTS += ("unknown-horizons", "wesnoth-1.16-data")
# What tuxpaint's files of speech are called: those that describe, and those with a language.
TALKS = re.compile(r"_desc|_[a-z]{2}(_[A-Z]+)?\.ogg")


def main(argv: list[str] | None = None) -> None:
    """Write the windows, as FLAC."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with a folder a package")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    draws, number = random.Random(0), 0
    for package in sorted({*SPEECH, *EFFECTS}):
        files = [path for path in sorted((args.folder / package).rglob("*")) if path.suffix.lower() in SUFFIXES]
        files = [path for path in files if path.is_file() and not path.is_symlink()]
        talk = [path for path in files if package not in EFFECTS or TALKS.search(path.name)]
        draws.shuffle(talk)
        effects = sorted({*files} - {*talk}) if package in EFFECTS else []
        draws.shuffle(effects)
        for paths, minutes in ((effects, None), (talk, SPEECH.get(package, 0))):
            sounds = np.concatenate([np.zeros(0, np.float32), *read(paths, minutes)])
            for window in sounds[: len(sounds) // WINDOW * WINDOW].reshape(-1, WINDOW):
                soundfile.write(args.output / f"{number:05d}_{package}.flac", window, RATE)
                number += 1
    print(f"{number} windows, {number * WINDOW / RATE / 3600:.2f} hours")


def read(paths: list[Path], minutes: float | None) -> list[np.ndarray]:
    """The files that can be read and sound, up to so many minutes of them."""
    found, samples = [], 0
    for path in paths:
        if minutes is not None and samples >= 60 * minutes * RATE:
            break
        try:
            waveform = load_waveform(path, RATE).numpy()[:LONGEST].clip(-1, 1)
        except AudioError:  # such as fonts of drum kits that are no sounds
            continue
        if len(waveform) and np.sqrt(np.mean(waveform**2)) > 1e-4:
            found.append(waveform)
            samples += len(waveform)
    return found


if __name__ == "__main__":
    main()

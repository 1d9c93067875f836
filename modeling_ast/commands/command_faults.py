"""The sentence that a command ends with where something goes wrong."""

import errno
import re
import signal
from importlib.metadata import PackageNotFoundError, requires

# What a machine can run out of, in the words of the system, of torch and of its GPUs; and what helps.
_SCARCE = {
    "files": "too many open files|received 0 items of ancdata",
    "memory": "not enough memory|(can't|cannot|unable to) allocate|out of memory|bad_alloc",
    "disk": "no space left|disk quota exceeded",
}
_REMEDIES = {
    "files": "Allow more of them (ulimit -n 4096), or use fewer worker processes",
    "memory": "Fewer clips at a time need less (in training half the per_device_train_batch_size with twice the "
    "gradient_accumulation_steps), and so do fewer worker processes",
    "disk": "Make room there, or write elsewhere; of checkpoints save_total_limit keeps fewer",
}
# Of a disk or a folder, not of a programme.
_DISK_ERRORS = {
    *(errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),
}
# What the backends of `torch.distributed` say in the processes that are left when another one ended.
_LOST_PROCESS = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited"),
    "Timed out waiting",
)
# And what they say where the processes do not find one another at the beginning.
_NOT_FOUND = ("waiting for clients", "trying to connect to", "connectFullMesh failed")


def fault_sentence(error: BaseException, goes_on: str = "") -> str | None:
    """What to tell the user of an error; `None` of one that is a fault of the programme and wants its traceback.

    Args:
        error: Also one that comes out of a worker process.
        goes_on: What can be done after what the machine or another process did.
    """
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_of(error.name)):
        return f"error: {error.name.partition('.')[0]} is not installed: pip install 'modeling_ast[{extra}]'"
    message = str(error)
    if message.startswith("Caught "):  # torch put the worker's traceback before it
        message = message.strip().splitlines()[-1].partition(": ")[2]
    if advice := _remedy(error):
        message = ". ".join(" ".join(message.split()).split(". ")[:3])  # a GPU's own goes on and on
        return _join(f"error: {message.rstrip('.') or 'There is not enough memory'}. {advice}.", goes_on)
    # Also while all read or write a checkpoint, which has an error of its own.
    met = [" ".join(str(each).split()) for each in (error, error.__cause__) if isinstance(each, RuntimeError)]
    if any(words in each for each in met for words in _LOST_PROCESS):
        return _join("error: Another process of this run has ended or hangs, and none goes on without it.", goes_on)
    if type(error).__module__.startswith("modeling_ast.") or type(error) is ImportError:
        return f"error: {message}"  # made to be told
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        return _join(f"error: {where}cannot be read or written ({error.strerror}).", goes_on)
    message = " ".join(message.split())
    if isinstance(error, RuntimeError) and message.startswith("DataLoader worker"):
        return _join(
            f"error: A process that reads the data has ended ({message.rstrip('. ')}): killed from outside, or for "
            "want of memory, where fewer of them may do (--dataloader_num_workers).",
            goes_on,
        )
    if isinstance(error, RuntimeError) and any(words in message for words in _NOT_FOUND):
        return (
            "error: This process does not find the others of the run: they have not begun, have ended, or cannot be "
            f"reached ({message.partition(': ')[0].rstrip('.')})."
        )
    return None


def stop_sentence(number: int, goes_on: str = "") -> str:
    """What to tell the user of a signal that ends a command.

    Args:
        number: Of the signal.
        goes_on: What can be done then.
    """
    return _join(f"Stopped by {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}.", goes_on)


def _remedy(error: Exception) -> str | None:
    """What helps where the machine has too little of something; `None` where it is another error."""
    if isinstance(error, MemoryError):
        return _REMEDIES["memory"]
    message = str(error).lower() if isinstance(error, (OSError, RuntimeError, ValueError)) else ""
    return next((_REMEDIES[what] for what, words in _SCARCE.items() if re.search(words, message)), None)


def _extra_of(package: str | None) -> str | None:
    """The extra of this package that brings another one."""
    from packaging.requirements import Requirement

    try:
        needed = map(Requirement, requires("modeling_ast") or ())
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None
    module_names = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
    for requirement in needed:
        name = module_names.get(requirement.name.lower(), requirement.name)
        if package and name.lower() == package.partition(".")[0].lower() and requirement.marker:
            return re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker))[1]
    return None


def _join(*sentences: str) -> str:
    return " ".join(filter(None, sentences))

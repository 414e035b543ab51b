"""One task in several processes of this machine."""

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from cxr_lightning.errors import UserError

Report = Callable[[int], object]
"""Is told how many more images are there."""

Task = Callable[[int, Report], None]
"""Is given the number of its process and a function to report progress with; picklable."""


def run_processes(task: Task, count: int, report: Report) -> None:
    """Runs a task in new processes and waits for all of them.

    Where one of them fails, is killed, or this process is interrupted, all others are ended.

    Args:
        task: What each process does.
        count: Number of processes.
        report: Is given what they report.

    Raises:
        UserError: If a process is killed.
        Exception: What a process raised, with a note that says where.
    """
    context = multiprocessing.get_context("spawn")  # CUDA cannot go on in a forked process
    processes: dict[Connection, SpawnProcess] = {}
    try:
        for number in range(count):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(task, number, theirs), daemon=True)
            process.start()
            theirs.close()
            processes[ours] = process
        _listen(processes, report)
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def _listen(processes: dict[Connection, SpawnProcess], report: Report) -> None:
    """Passes reports on until all processes are done."""
    talking = [*processes]
    while talking:
        for connection in wait(talking):
            assert isinstance(connection, Connection)
            try:
                message = connection.recv()
            except EOFError as error:
                process = processes[connection]
                process.join()
                raise UserError(
                    f"devices: one of {len(processes)} processes was killed (exit code "
                    f"{process.exitcode}), probably for want of memory; give the same command "
                    "again, with fewer --devices if that is so."
                ) from error
            if isinstance(message, Exception):
                raise message
            if message is None:
                talking.remove(connection)
            else:
                report(message)


def _run(task: Task, number: int, connection: Connection) -> None:
    """What a process does; says None when it is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, which ends us
    try:
        task(number, connection.send)
    except BrokenPipeError:  # the first process is gone
        return
    except Exception as error:
        error.add_note(f"in process {number}:\n{traceback.format_exc()}")
        connection.send(error if _travels(error) else RuntimeError(traceback.format_exc()))
    else:
        connection.send(None)


def _travels(error: Exception) -> bool:
    """Whether an exception can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True

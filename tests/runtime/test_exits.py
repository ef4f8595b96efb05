"""Whatever in the user's code ends the process: never with status 0."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import textwrap

import pytest

from xares_bench.runtime.exits import exits_raise


def status_of(code: str) -> tuple[int, str]:
    """Exit status and output of a process that runs the code behind the guard's import."""
    program = "import os, sys, threading\nfrom xares_bench.runtime.exits import exits_raise, session_ended\n"
    done = subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "call",
    [
        *("os._exit(0)", "os.execv('/bin/true', ['true'])", "os.execvp('true', ['true'])", "sys.exit(0)"),
        *("ctypes.CDLL(None).exit(0)", "ctypes.CDLL(None)._exit(0)", "ctypes.pythonapi.Py_Exit(0)"),
        *("posix._exit(0)", "posix.execve('/bin/true', ['true'], {})", "posix.execv('/bin/true', ['true'])"),
    ],
)
def test_a_call_in_the_users_code_raises(call: str) -> None:
    with pytest.raises(SystemExit), exits_raise():
        exec(call, {"ctypes": ctypes, "os": os, "sys": sys, "posix": sys.modules["posix"]})


def test_a_thread_of_the_user_ends_the_process_with_a_failure() -> None:
    status, output = status_of("""
        with exits_raise():
            threading.Timer(0.1, os._exit, [0]).start()
        threading.Event().wait(20)
    """)
    assert status == 3
    assert "os._exit(0) was called before the session has ended" in output


def test_another_status_stays() -> None:
    assert status_of("with exits_raise(): pass\nos._exit(7)")[0] == 7


@pytest.mark.parametrize("status", [0, 1, 5])
def test_after_the_session_its_own_status_holds(status: int) -> None:
    assert status_of(f"with exits_raise(): pass\nsession_ended({status})\nos._exit(0)") == (status, "")


def test_a_program_that_goes_on_after_the_session_ends_as_it_likes() -> None:
    code = """
        from xares_bench.runtime.exits import process_goes_on
        for _ in range(2):
            with exits_raise(): pass
            session_ended(0)
            process_goes_on()
    """
    for end, status in (("os._exit(7)", 7), ("import ctypes; ctypes.CDLL(None).exit(8)", 8), ("sys.exit(9)", 9)):
        assert status_of(textwrap.dedent(code) + end) == (status, "")
    again = textwrap.dedent(code) + "with exits_raise(): threading.Timer(0, os._exit, [0]).start()\n"
    assert status_of(again + "threading.Event().wait(20)")[0] == 3, "in the next session"


@pytest.mark.parametrize("module", ["os", "posix"])
def test_an_exit_handler_of_the_user_does_not_turn_a_failure_into_a_pass(module: str) -> None:
    status, _ = status_of(f"""
        import atexit, {module}
        with exits_raise():
            atexit.register({module}._exit, 0)
        session_ended(1)
        sys.exit(1)
    """)
    assert status == 1


def test_ctypes_gives_out_no_exit_to_a_thread_or_an_exit_handler() -> None:
    status, output = status_of("""
        import atexit, ctypes
        library = ctypes.CDLL(None)
        with exits_raise():
            thread = threading.Thread(target=lambda: library.exit(0))
            thread.start(); thread.join()
            atexit.register(lambda: library._exit(0))
        session_ended(1)
        sys.exit(1)
    """)
    assert status == 1
    assert "AttributeError" not in output


# What code in C does, which has its functions from the linker and asks nobody.
LINKED = """
    import ctypes
    c, python = ctypes.CDLL(None), ctypes.pythonapi
    c.exit, c.quick_exit, python.Py_Exit  # looked up before the guard, and kept by ctypes
"""


@pytest.mark.parametrize("call", ["c.exit(0)", "c.quick_exit(0)", "python.Py_Exit(0)", "python.Py_FinalizeEx()"])
def test_code_in_c_ends_the_process_with_a_failure(call: str) -> None:
    status, output = status_of(LINKED + f"    with exits_raise(): {call}")
    assert status == 3
    assert "code in C has ended the process before the session has ended" in output


def test_a_thread_in_c_ends_the_process_with_a_failure() -> None:
    status, _ = status_of(
        LINKED
        + """
    with exits_raise():
        threading.Timer(0.1, c.exit, [0]).start()
    threading.Event().wait(20)
    """
    )
    assert status == 3


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "os._exit(0)", "c.exit(0)", "os.kill(os.fork() or os.getpid(), 0)"])
def test_after_the_session_nothing_is_said(end: str) -> None:
    assert status_of(
        LINKED
        + f"""
    with exits_raise(): pass
    session_ended(0)
    {end}
    """
    ) == (0, "")


def test_a_session_that_never_ended_does_not_change_how_python_ends() -> None:
    assert status_of("with exits_raise(): pass\nsys.exit(5)") == (5, "")


def test_a_child_may_exit_in_c() -> None:
    status, output = status_of(
        LINKED
        + """
    with exits_raise():
        child = os.fork()
        if child == 0:
            c.exit(4)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    )
    assert (status, output) == (0, "4\n")


def test_children_end_as_they_like() -> None:
    status, _ = status_of("""
        with exits_raise():
            child = os.fork()
            if child == 0:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            import multiprocessing
            process = multiprocessing.get_context("fork").Process(target=print)
            process.start(); process.join()
            assert process.exitcode == 0
        os._exit(9)
    """)
    assert status == 9


def test_nested_blocks_end_with_the_outer_one() -> None:
    with exits_raise():
        with exits_raise():
            pass
        with pytest.raises(SystemExit, match=r"os\._exit\(0\)"):
            os._exit(0)

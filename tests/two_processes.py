"""Two processes that train together, on one machine, started with the variables that torchrun gives."""

import os
import socket
import subprocess
import sys


def run_two(program, folder, seconds=240):
    """Run the text of a program, with `folder` as its argument, as rank 0 and 1; what each said on standard error."""
    (folder / "program.py").write_text(program)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    shared |= {"OMP_NUM_THREADS": "1", "SEGARENA_CACHE": str(folder / "cache")}
    command = [sys.executable, "-W", "error", str(folder / "program.py"), str(folder)]
    processes = []
    try:
        for rank in ("0", "1"):
            env = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
        said = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return said

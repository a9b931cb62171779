"""How the checks of this directory call programs."""

import subprocess
import sys


def run(*command, check=True, **rest):
    """Runs a program to its end, and ends the check if it fails unless `check` is False."""
    done = subprocess.run(command, capture_output=True, text=True, **rest)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done

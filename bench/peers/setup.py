"""Make the other clients' virtual environments, each in bench/.venvs/NAME.

python bench/peers/setup.py [NAME ...]
"""

import subprocess
import sys
from pathlib import Path

VENVS = Path(__file__).resolve().parent.parent / ".venvs"
PACKAGES = {
    "openai_sdk": ["openai"],
    "curator_rows": ["bespokelabs-curator"],
    "data_designer_rows": ["data-designer"],
    "langchain_calls": ["langchain-openai"],
}


def make(name: str) -> bool:
    """Whether the environment is there and its packages are in."""
    python = VENVS / name / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(VENVS / name)], check=True)
        subprocess.run([*install, *PACKAGES[name]], check=True)
    except subprocess.CalledProcessError as error:
        print(f"{name}: could not be made ({error})", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    made = [make(name) for name in sys.argv[1:] or PACKAGES]
    sys.exit(not all(made))

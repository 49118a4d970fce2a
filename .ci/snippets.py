"""Runs the Python snippets of Markdown files, each on its own: python .ci/snippets.py README.md docs/metrics.md"""

import re
import subprocess
import sys
from pathlib import Path

for page in sys.argv[1:]:
    found = re.findall(r"^```python\n(.*?)^```$", Path(page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if not found:
        sys.exit(f"{page} holds no Python snippet")
    for snippet in found:
        print(snippet)
        subprocess.run([sys.executable, "-c", snippet], check=True)

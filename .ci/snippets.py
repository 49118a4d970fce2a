"""Runs the Python snippets of a Markdown file, each on its own: python .ci/snippets.py README.md"""

import re
import subprocess
import sys
from pathlib import Path

found = re.findall(r"^```python\n(.*?)^```$", Path(sys.argv[1]).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
if not found:
    sys.exit(f"{sys.argv[1]} holds no Python snippet")
for snippet in found:
    print(snippet)
    subprocess.run([sys.executable, "-c", snippet], check=True)

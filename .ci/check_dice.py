"""Check the mean Dice that the training recipe printed: ``check_dice.py LOG LEAST``."""

import re
import sys
from pathlib import Path

log, least = Path(sys.argv[1]).read_text(), float(sys.argv[2])
found = re.findall(r"^val Dice ([0-9.]+) .*best ([0-9.]+)", log, flags=re.M)
if not found:
    sys.exit("the recipe printed no Dice")
last, best = (float(n) for n in found[-1])
if last < least:
    sys.exit(f"mean foreground Dice {last} (best {best}) is below {least}")
sys.stdout.write(f"mean foreground Dice {last} (best {best}) is at least {least}\n")

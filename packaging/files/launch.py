import os.path
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from observer_agent.cli import main

sys.exit(main(prog_name="observer-agent"))

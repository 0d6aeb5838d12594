"""python -m observer_agent"""

from observer_agent.cli import main

main()

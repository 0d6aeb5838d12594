"""observer-agent: probes, judges, queues and delivers. (The map of this directory follows.)"""

__version__ = "0.1.0"

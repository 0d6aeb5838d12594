"""The second dialect's agent: checks of a Lighthouse console in, up and down events out.

The parts that look (probes, collectors, lookout) and those that deliver (queue, keeper, sender) are the same as in the
first dialect; here is what differs: what a check means, when it counts as down, what the console is told and when.
"""

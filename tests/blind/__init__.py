"""Fifty targets, a cloud and a resolver on a loopback of their own, and what goes wrong there."""

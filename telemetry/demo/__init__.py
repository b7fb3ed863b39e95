"""Octaved Flow in small: a web application, its people and its visitors, for ``telemetry demo``.

Nobody in here exists. Real are the exceptions, the clients that report them, and the pipeline.
"""

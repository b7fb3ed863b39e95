"""How well detectors do: a corpus made from templates and seeds, and its score."""

"""From the scenes of a training reader to what a training run reads fast: records or folders."""

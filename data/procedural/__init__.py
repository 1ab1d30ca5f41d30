"""The rendered world: moving scenes with exact depth, flow, poses, intrinsics and masks."""

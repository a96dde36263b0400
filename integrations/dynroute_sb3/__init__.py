"""Multi-task SAC for Stable-Baselines3 on top of dynroute; importing it tells whether its extra is installed."""

__all__: list[str] = []

try:
    import stable_baselines3 as stable_baselines3
except ImportError as error:
    raise ImportError("dynroute_sb3 needs Stable-Baselines3; type: pip install 'dynroute[sb3]'") from error

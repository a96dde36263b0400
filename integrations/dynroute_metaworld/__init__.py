"""Meta-World environments and evaluation on top of dynroute_sb3; importing it tells whether its extra is installed."""

__all__: list[str] = []

try:
    import metaworld as metaworld
except ImportError as error:
    raise ImportError("dynroute_metaworld needs Meta-World; type: pip install 'dynroute[metaworld]'") from error

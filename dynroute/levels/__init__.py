"""The four levels of routing (D2R, Fig. 2) as constructors of one routed graph."""

from .graph import RoutedGraph
from .layer import LayerRouting
from .model import ModelRouting
from .module import ModuleRouting
from .output import OutputRouting
from .perceptron import GatedPerceptron

__all__ = ["GatedPerceptron", "LayerRouting", "ModelRouting", "ModuleRouting", "OutputRouting", "RoutedGraph"]

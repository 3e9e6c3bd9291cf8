"""Modes come back as they were, whatever a module's `train` does beside setting its flag."""

from torch import nn

from evenly.modes import restored
from support import Merging


class Partly(nn.Module):
    """Keeps its BatchNorm in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.layers = nn.BatchNorm1d(2), nn.ModuleList([Merging(), Merging()])

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


def looked_at(model):
    with restored(model):
        model.eval()
        assert not any(module.training for module in model.modules())


def test_a_layer_that_merges_for_evaluation_is_parted_again():
    model = nn.Sequential(Merging())
    looked_at(model)
    assert model[0].training
    assert not model[0].merged


def test_one_that_was_merged_stays_so():
    """Though its parent, which switches its children, goes back to training."""
    model = Partly()
    model.layers[1].eval()
    before = [module.training for module in model.modules()]
    looked_at(model)
    assert [module.training for module in model.modules()] == before
    assert [layer.merged for layer in model.layers] == [False, True]


def test_a_flag_that_differs_from_what_train_would_set():
    model = Partly()
    model.norm.training = True
    looked_at(model)
    assert model.norm.training


def test_a_function_in_the_place_of_train():
    model = nn.Sequential(nn.Linear(2, 2))
    heard = []
    model[0].train = lambda mode=True: heard.append(mode)
    with restored(model):
        model[0].training = False
    assert heard == [True]

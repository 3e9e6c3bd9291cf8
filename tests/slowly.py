"""An encoder of which an epoch takes a while, for commands that are to be killed in the middle."""

import time

from torch import nn


class Slow(nn.Module):
    out_features = 8

    def __init__(self, seconds=0.1):
        super().__init__()
        self.net = nn.LazyLinear(8)
        self.seconds = seconds

    def forward(self, x):
        if self.training:
            time.sleep(self.seconds)
        return self.net(x.float())

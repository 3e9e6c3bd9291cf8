"""Small trainings for which each modality's correct verdict is known.

A case is built so that each of its modalities is scarce, over-trained, suppressed, unused or
learnt; the oracle (oracle.py) then checks with many fresh samples whether it turned out so.

Two modalities that tell the class only together, each at chance alone, are `learnt` if the model
has learnt them, since neither can be left out.
"""

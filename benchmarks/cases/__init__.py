"""Small trainings of which it is known what each modality's verdict should be.

A case is built so that each of its modalities is scarce, over-trained, suppressed, unused or
learnt; the oracle (oracle.py) then looks with many fresh samples whether it came out so.

Two modalities that tell the class together alone, each by itself at chance, are `learnt` where the
model has learnt them: nobody could leave one out.
"""

"""What is trained to be looked at: the quickstarts, the stock parts they are compared with, the ablations."""

"""What is trained to be looked at: the quickstarts, the stock components they are compared with, the ablations."""

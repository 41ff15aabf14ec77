"""RP-PGD: adversarial training of segmenters, and what attacks them."""

"""Building blocks that attentions and models share; maps are (B, H, W, C) unless a name says otherwise."""

"""The frame, the style and the charts that our HTML pages share."""

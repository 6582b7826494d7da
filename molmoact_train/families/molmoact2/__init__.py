"""MolmoAct2: a vision-language decoder, a flow-matching action expert over its keys and values, and Think."""

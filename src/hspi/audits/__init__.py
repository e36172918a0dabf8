"""An endpoint and a claim → a verdict, with evidence that anyone can score again.

request (`run`) → material → discovery → level of evidence (`levels`) → plan → questions and answers (`gathering`) →
rules → verdict; everything lies in one folder (`folder`) and is sealed at the end. The room is called audits because
`hspi.audit` is the function that does it, which a package of that name would replace.
"""

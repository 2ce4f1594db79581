"""What the demo's people, places and shows are called."""

FIRST_NAMES = (  # divided by spaces
    "Ada Aïcha Álvaro Amélie Anaïs Ángela Anna-Lena Aoife Björk Błażej Bram Bronisława Camille Çağla "
    "Chloé Ciarán Čeněk Daan Dagmar Elif Élodie Emeka Émile Eoghan Esra Fatou Fenna Fernando François "
    "Freya Gaëlle Giulia Grégoire Gül Hanneke Héloïse Ifeanyi Ilse İpek Iñaki Inês Jana Jérôme João "
    "Jörg José-María Jürgen Kaatje Katarzyna Kenji Koffi Léa Liên Lotte Łukasz Maëlys Małgorzata "
    "Marie-Claire Marlène Máté Mehmet Mercedes Milan Mónica Naïma Ngozi Niamh Nicolás Noëlle Núria "
    "Oisín Olivier Øyvind Pádraig Paweł Pietro Rasmus Raúl Renée Róisín Saoirse Sébastien Siobhán "
    "Şebnem Sofía Søren Stéphane Théo Thijs Tomáš Tuğba Ursula Véronique Wiebke Xavier Yael Yūki "
    "Yvette Zbigniew Zoë Zsófia"
)

LAST_NAMES = (  # divided by |
    "Aalto|Ávila|Baeyens|Bąkowski|Benoît|Bjørnstad|Böhm|Brânză|Castaño|Çelik|Černý|Claes|D'Angelo|"
    "De Smet|de la Fuente|Delacroix|Demirbağ|Dubois|Dvořák|Eriksdóttir|Fàbregas|Fernández-Ordóñez|"
    "Fitzgerald|Gautier|García Márquez|Gößmann|Grønland|Guðmundsdóttir|Hájková|Hernández|Højgaard|"
    "Ibáñez|Ilunga|Jánošík|Janssens|Jørgensen|Kaczyński|Kılıç|Kovács|Krämer|Lefèvre|Lemaître|Lindqvist|"
    "Łaski|MacÍosa|Maes|Mathonière|Mbeki|Müller-Lüdenscheidt|Nagy|Nguyễn|Ní Dhomhnaill|Novák|Nuñez|"
    "O'Brien|Ó Súilleabháin|Okonkwo|Öztürk|Peeters|Pérez|Piñeiro|Queirós|Quintão|Raskolnikov|Rønning|"
    "Ruiz de Alarcón|Sánchez|Šimek|Sjöberg|Smith|Şahin|St. John|Svensson|Szczepański|Takahashi|"
    "Thorvaldsdóttir|Tō|Ünal|Urbańczyk|Vandenberghe|van der Meer|van 't Hoff|Vásquez|Verhaegen|Wąsik|"
    "Wójcik|Yılmaz|Žižka|Zürcher"
)

LONG_FIRST_NAMES = ("María del Pilar Guadalupe de los Ángeles", "Jean-Baptiste-Emmanuel-Théodore Marie")
LONG_LAST_NAMES = (
    "Wolfeschlegelsteinhausenbergerdorff-Wittgenstein",
    "de Borbón y Austria-Este de Habsburgo-Lorena Sánchez-Cabezudo",
)
OTHER_SCRIPTS = (
    ("美咲", "高橋"), ("大翔", "佐藤"), ("Ελένη", "Παπαδοπούλου"), ("Олексій", "Шевченко"),
    ("ليلى", "الحداد"), ("지우", "김"), ("נועה", "לוי"), ("Zoë 🎷", "Blue"),
)  # fmt: skip

PLACES = {
    "BE": (
        ("Bruxelles", "1000"),
        ("Antwerpen", "2018"),
        ("Liège", "4000"),
        ("Gent", "9000"),
        ("Mons", "7000"),
    ),
    "FR": (("Lille", "59000"), ("Paris", "75011"), ("Besançon", "25000")),
    "NL": (("Utrecht", "3511 AB"), ("’s-Hertogenbosch", "5211 AA")),
    "DE": (("Köln", "50667"), ("Düsseldorf", "40213")),
    "GB": (("London", "EC1V 4AB"), ("Bristol", "BS1 5TR"), ("Ynys Môn", "LL77 7TW"), ("Leeds", "LS1 4AP")),
    "IE": (("Dún Laoghaire", "A96 K7X2"), ("Galway", "H91 E2K3")),
    "US": (("Austin", "78701"), ("San José", "95113"), ("New York", "10003"), ("Española", "87532")),
    "MX": (("Mérida", "97000"), ("Querétaro", "76000")),
    "CA": (("Montréal", "H2X 1Y4"), ("Toronto", "M5V 2T6")),
}
DIALLING = {
    "BE": "+32470", "FR": "+33612", "NL": "+31612", "DE": "+49151", "GB": "+44770", "IE": "+35385",
    "US": "+15125", "MX": "+52999", "CA": "+15145",
}  # fmt: skip

ARTISTS = {
    "music_venue": (
        "Amélie Fontaine Trio", "Kenji Mori Quartet", "Les Échos du Sahel", "Björn & Sæunn",
        "Tío Pepe Septeto", "Nils Ødegård", "Marguerite Desrosiers", "The Café Noir Seven",
        "Zsófia Kárpáti", "Ngozi Adébáyò Band", "Trio Żółw", "Orquesta La Ñapa", "Çiğdem Aksoy",
        "Dom Ferrão", "Ana-Luísa Pão", "Big Band d’Été",
    ),
    "comedy_club": (
        "Siân Llewellyn", "Fergus O’Dowd", "The Improv Élite", "Priya & Zoë", "Jürgen Ohne-Witz",
        "Nan’s Revenge", "Aoife Ní Bhriain", "Two Left Feet", "Renée’s Naïve Café", "The Understudies",
        "Małgosia Śmiech",
    ),
    "festival": (
        "Río Sin Nombre", "Motörcycle Sæson", "The Lakeside Choir", "DJ Ñandú", "Hüsker Don’t",
        "Beyoncé Who?", "Los Ángeles Azules de Austin", "Café Tacuba Cover Club", "Sigur Rósa",
        "The Fjörds", "Señor Synth",
    ),
}  # fmt: skip
SHOWS = {
    "music_venue": (
        "{}", "{} plays Ellington", "{}: live at midnight", "{} invite Django", "Jazz brunch with {}",
        "{} — l’intégrale", "Hommage à Monk: {}",
    ),
    "comedy_club": (
        "{}", "{}: work in progress", "{} and friends", "Late-night {}", "{} (signed performance)",
        "An audience with {}", "{}: “Crème de la Crumb”", "{} vs. the audience", "{}, unplugged",
        "{} at Christmas",
    ),
    "festival": (
        "{}", "{} (main stage)", "{} (lake stage)", "{} — sunrise set", "Silent disco with {}",
        "{} & the Strings", "{}: acoustic", "Day ticket: {} and more", "{} × Orchestra",
        "After hours: {}", "{} for families", "Campfire songs with {}",
    ),
}  # fmt: skip
LONG_SHOW = (
    "{}: the complete and unabridged history of improvised music in seventeen movements, two intervals and "
    "an encore, performed in reverse order with guests from Łódź, Århus, Málaga and Trois-Rivières"
)
DESCRIPTIONS = (
    "Doors at 19:00, music from 20:30. Seats aren’t numbered; come early.",
    "« Une soirée inoubliable » — and the bar stays open afterwards.",
    "With support. Under-16s only with an adult.\nWheelchair places: please call us.",
    "First time in town since 2011. Expect crème brûlée, naïveté & a façade or two.",
    "Sold out three nights running last year — “as good as they say” (The Post).",
    "Bring a cushion. Rain or shine. <No refunds> unless we cancel; 100% of tips go to the crew.",
)

"""The story families of the Italian word problems: what is told, which numbers are drawn, what is right.

A family tells one kind of story in several wordings. `draw` gives its numbers, `right` the answer from them. In a
wording `{a}` to `{d}` are those numbers, `{n}` and `{m}` two people, `{o}` one of the family's things, `{c}` a town.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

Numbers = dict[str, int | float]


class Family(NamedTuple):
    """One kind of story."""

    name: str
    english: str  # what is asked, for a reader without Italian
    steps: int  # sums it takes
    draw: Callable[[Random], Numbers]
    right: Callable[..., float]
    things: tuple[str, ...]
    wordings: tuple[str, ...]


def _ints(**ranges: tuple[int, int]) -> Callable[[Random], Numbers]:
    return lambda rng: {name: rng.randint(*limits) for name, limits in ranges.items()}


def _times(product: str, one: tuple[int, int], other: tuple[int, int]) -> Callable[[Random], Numbers]:
    """Draw a number that another divides: `product` is their product, `b` the divisor."""

    def draw(rng: Random) -> Numbers:
        quotient, divisor = rng.randint(*one), rng.randint(*other)
        return {product: quotient * divisor, "b": divisor}

    return draw


def _price(rng: Random, low: int, high: int) -> float:
    return rng.randint(low, high) + rng.choice([0, 0, 0.5])


def _mean(rng: Random) -> Numbers:
    mean, step = rng.randint(6, 9), rng.randint(0, 1)
    return {"a": mean - step, "b": mean, "c": mean + step}


TRAIN = (
    Family(
        "frutta",
        "two kinds of fruit, how many together?",
        1,
        _ints(a=(3, 20), b=(3, 20)),
        lambda a, b: a + b,
        ("mele", "arance", "pesche", "banane"),
        (
            "Nel cesto di {n} ci sono {a} {o} e {b} susine. Quanti frutti ci sono nel cesto?",
            "Al mercato di {c} {n} raccoglie in una borsa {a} {o}; {m} ne aggiunge altre {b}. Quante {o} ci sono?",
            "Per la macedonia servono {a} {o} e {b} prugne: quanti frutti deve lavare {n} in tutto?",
            "{n} ha {a} {o}, {m} invece {b}. Se le mettono insieme sul tavolo, quante {o} vedono?",
        ),
    ),
    Family(
        "resto",
        "paid with a banknote, how much change?",
        1,
        lambda r: {"a": r.choice([10, 20, 50]), "b": _price(r, 2, 9)},
        lambda a, b: a - b,
        ("un quaderno", "una torcia", "un ombrello", "una sciarpa", "un portachiavi"),
        (
            "{n} compra {o} che costa {b} euro e paga con una banconota da {a} euro. Quanti euro di resto riceve?",
            "Alla cassa del negozio di {c} {m} consegna {a} euro per {o} da {b} euro: quanto riceve indietro, in euro?",
            "Con {a} euro in tasca {n} prende {o}. Il cartellino dice {b} euro. Quanti euro rimangono?",
            "Quanto resta di {a} euro, dopo che {n} ha pagato {b} euro per {o}?",
        ),
    ),
    Family(
        "prezzo",
        "so many at this price each, how much in all?",
        1,
        lambda r: {"a": r.randint(2, 9), "b": r.randint(2, 9)},
        lambda a, b: a * b,
        ("penne", "piantine", "candele", "tazze", "cartoline"),
        (
            "Ogni confezione di {o} costa {b} euro. {n} ne prende {a}. Quanti euro spende?",
            "{n} compra {a} {o} a {b} euro l'una: quanto paga in tutto, in euro?",
            "In una bottega di {c} le {o} si vendono a {b} euro ciascuna. Quanto costano {a} {o}?",
            "Sul conto di {m} ci sono {a} {o}, tutte da {b} euro. Qual è il totale in euro?",
        ),
    ),
    Family(
        "divisione",
        "shared equally among children, how many for each?",
        1,
        _times("a", (2, 9), (2, 6)),
        lambda a, b: a / b,
        ("caramelle", "biglie", "castagne", "fragole", "figurine"),
        (
            "{n} divide {a} {o} in parti uguali fra {b} bambini. Quante {o} tocca a ciascuno?",
            "In un sacchetto ci sono {a} {o}. {b} amici di {c} le spartiscono senza avanzi: quante ne ha ognuno?",
            "Se {b} cugini si dividono {a} {o} in modo giusto, quante {o} riceve ogni cugino?",
            "La nonna di {m} porta {a} {o} per {b} nipoti, lo stesso numero per tutti. Quante a testa?",
        ),
    ),
    Family(
        "futuro",
        "how old in so many years?",
        1,
        _ints(a=(6, 40), b=(3, 15)),
        lambda a, b: a + b,
        ("nonno", "cugino", "fratello", "vicino"),
        (
            "Oggi {n} ha {a} anni. Quanti anni avrà fra {b} anni?",
            "Il {o} di {m} compie adesso {a} anni: quale età raggiungerà quando saranno passati altri {b} anni?",
            "Fra {b} anni {n} finirà gli studi a {c}. Ora ne ha {a}. Quanti anni avrà quel giorno?",
            "Quanti anni avrà tra {b} anni una persona che in questo momento ne ha {a}, come il {o} di {n}?",
        ),
    ),
    Family(
        "differenza",
        "two ages, how many years apart?",
        1,
        lambda r: {"b": (b := r.randint(4, 20)), "a": b + r.randint(2, 20)},
        lambda a, b: a - b,
        ("fratello", "cugino", "figlio", "nipote"),
        (
            "{n} ha {a} anni e suo {o} ne ha {b}. Quanti anni di differenza ci sono?",
            "Di quanti anni è più grande {m}, che ne ha {a}, del proprio {o}, che ne ha {b}?",
            "A {c} vivono due parenti: una persona di {a} anni e il suo {o} di {b}. Qual è la differenza di età?",
            "Il {o} di {n} ha {b} anni. {n} invece {a}. Quanti anni in più ha {n}?",
        ),
    ),
    Family(
        "viaggio",
        "minutes riding and minutes walking, how long in all?",
        1,
        _ints(a=(5, 40), b=(5, 40)),
        lambda a, b: a + b,
        ("autobus", "treno", "tram", "traghetto"),
        (
            "Per andare al lavoro {n} viaggia {a} minuti in {o} e poi cammina per {b} minuti. Quanti minuti impiega?",
            "Il {o} da {c} ci mette {a} minuti fino alla stazione; da lì a casa di {m} ne servono altri {b}. "
            "Quanto dura il tragitto, in minuti?",
            "{n} aspetta il {o} per {a} minuti e il percorso dura {b} minuti: quanti minuti passano in tutto?",
            "Prima {b} minuti a piedi, dopo {a} minuti di {o}. Quanto tempo, in minuti, è in strada {m}?",
        ),
    ),
    Family(
        "minuti",
        "how many minutes are so many hours?",
        1,
        _ints(a=(2, 9)),
        lambda a: a * 60,
        ("la lezione", "il film", "la gara", "il concerto"),
        (
            "Quanti minuti dura {o}, se finisce dopo {a} ore esatte?",
            "{n} guarda l'orologio: {o} dura proprio {a} ore. A quanti minuti corrispondono?",
            "A {c} {o} comincia e termina dopo {a} ore. Scrivi la durata in minuti.",
            "Trasforma in minuti le {a} ore che {m} ha passato aspettando {o}.",
        ),
    ),
    Family(
        "pendolare",
        "there and back every day, how many kilometres?",
        2,
        _ints(a=(2, 9), b=(2, 5)),
        lambda a, b: 2 * a * b,
        ("scuola", "teatro", "lezione"),
        (
            "Da casa a {o} ci sono {a} chilometri. {n} va e torna ogni giorno per {b} giorni. Quanti chilometri fa?",
            "{m} percorre {a} km all'andata e {a} km al ritorno: quanti km fa in {b} giorni, andando a {o}?",
            "Per {b} giorni {n} pedala da casa a {o}, che a {c} dista {a} chilometri, e rientra la sera. "
            "Quanti chilometri sono in totale?",
        ),
    ),
    Family(
        "ricetta",
        "grams for one cake, how many for several?",
        1,
        lambda r: {"a": r.randint(5, 30) * 10, "b": r.randint(2, 5)},
        lambda a, b: a * b,
        ("farina", "zucchero", "riso", "burro"),
        (
            "Per una torta servono {a} grammi di {o}. Quanti grammi ne servono a {n} per {b} torte?",
            "Una porzione vuole {a} g di {o}: {m} cucina {b} porzioni. Quanti grammi di {o} usa?",
            "Il cuoco di {c} moltiplica la dose per {b}. La dose è di {a} grammi di {o}: quanti grammi pesa?",
            "{n} prepara {b} teglie uguali; in ognuna mette {a} grammi di {o}. Quanti grammi in tutto?",
        ),
    ),
    Family(
        "ribasso",
        "so many euros off, what is the new price?",
        1,
        lambda r: {"b": (b := r.randint(3, 20)), "a": b + r.randint(5, 60)},
        lambda a, b: a - b,
        ("giacca", "lampada", "borsa", "valigia", "radio"),
        (
            "Una {o} costava {a} euro; oggi costa {b} euro in meno. Qual è il nuovo prezzo in euro?",
            "Il negozio di {c} toglie {b} euro dal prezzo della {o}, che era di {a} euro. Quanto paga {n}?",
            "{m} ha un buono da {b} euro e sceglie una {o} da {a} euro: quanti euro deve aggiungere?",
            "Prezzo pieno della {o}: {a} euro. Riduzione: {b} euro. Quanto spende {n}?",
        ),
    ),
    Family(
        "percento",
        "so many percent off, what is the new price?",
        2,
        lambda r: {"a": r.randint(2, 10) * 20, "b": r.choice([10, 25, 50])},
        lambda a, b: a - a * b / 100,
        ("bicicletta", "stampante", "poltrona", "tenda"),
        (
            "Una {o} da {a} euro è scontata del {b}%. Quanti euro costa adesso?",
            "Sul prezzo di {a} euro {n} ottiene uno sconto del {b} per cento per la sua {o}: quanto paga, in euro?",
            "A {c} la {o} costa {a} euro meno il {b}%. Qual è il prezzo finale in euro?",
        ),
    ),
    Family(
        "lettura",
        "pages every evening, how many in so many evenings?",
        1,
        _ints(a=(5, 30), b=(2, 9)),
        lambda a, b: a * b,
        ("romanzo", "giallo", "manuale", "diario"),
        (
            "{n} legge {a} pagine del suo {o} ogni sera. Quante pagine legge in {b} sere?",
            "In treno per {c} {m} legge {a} pagine di un {o} al giorno: quante sono dopo {b} giorni?",
            "Quante pagine di un {o} ha letto chi ne legge {a} al giorno da {b} giorni?",
            "Un {o} ha {b} capitoli, ognuno di {a} pagine. Quante pagine conta {n}?",
        ),
    ),
    Family(
        "rimaste",
        "pages of a book less those read each day, how many are left?",
        2,
        lambda r: {"a": r.randint(8, 20) * 10, "b": r.randint(5, 15), "c": r.randint(2, 5)},
        lambda a, b, c: a - b * c,
        ("romanzo", "giallo", "fumetto", "saggio"),
        (
            "Un {o} ha {a} pagine. {n} ne legge {b} al giorno per {c} giorni. Quante pagine restano?",
            "Delle {a} pagine di un {o} {m} ne ha lette {b} in ognuna delle ultime {c} sere: quante ne mancano?",
            "{n} ha preso in biblioteca a {c_} un {o} lungo {a} pagine e ne legge {b} ogni giorno. "
            "Quante pagine restano da leggere dopo {c} giorni?",
        ),
    ),
    Family(
        "uova",
        "boxes and some loose ones, how many in all?",
        2,
        _ints(a=(2, 6), b=(4, 10), c=(2, 5)),
        lambda a, b, c: a * b + c,
        ("uova", "perle", "matite", "noci"),
        (
            "{n} ha {a} scatole con {b} {o} ciascuna e altre {c} {o} sciolte. Quante {o} ha?",
            "Sul banco ci sono {c} {o} fuori dalle confezioni e {a} confezioni da {b}. Quante {o} conta {m}?",
            "In cucina a {c_} restano {a} vassoi da {b} {o} più {c} {o} in una ciotola: quante {o} sono in tutto?",
        ),
    ),
    Family(
        "autobus",
        "some get off and some get on, how many are aboard?",
        2,
        lambda r: {"a": r.randint(15, 40), "b": r.randint(3, 12), "c": r.randint(3, 12)},
        lambda a, b, c: a - b + c,
        ("autobus", "tram", "pullman", "traghetto"),
        (
            "Su un {o} ci sono {a} persone. Alla fermata ne scendono {b} e ne salgono {c}. Quante persone ci sono?",
            "Il {o} parte da {c_} con {a} passeggeri; poi {b} scendono, {c} salgono. Quanti passeggeri restano?",
            "{n} conta {a} viaggiatori sul {o}: ne vede scendere {b} e subito dopo salire {c}. Quanti sono adesso?",
        ),
    ),
    Family(
        "risparmio",
        "saved every week, how much after so many weeks?",
        1,
        _ints(a=(2, 15), b=(3, 9)),
        lambda a, b: a * b,
        ("salvadanaio", "barattolo", "cassetto"),
        (
            "Ogni settimana {n} mette {a} euro nel {o}. Quanti euro ci sono dopo {b} settimane?",
            "{m} risparmia {a} euro la settimana: quanti euro trova nel {o} passate {b} settimane?",
            "Per {b} settimane di fila nel {o} di {n} finiscono {a} euro. Quale somma raggiunge?",
            "Da {b} settimane a {c} {m} conserva {a} euro a settimana in un {o}. Quanti euro ha messo da parte?",
        ),
    ),
    Family(
        "obiettivo",
        "some saved, some more each week, after how many weeks is it enough?",
        2,
        lambda r: {"b": (b := r.randint(5, 20)), "c": (c := r.randint(2, 10)), "a": b + c * r.randint(2, 6)},
        lambda a, b, c: (a - b) / c,
        ("un pallone", "una chitarra", "un orologio", "uno zaino"),
        (
            "{n} vuole {o} da {a} euro. Ha già {b} euro e ne risparmia {c} a settimana. "
            "Dopo quante settimane ha i soldi che servono?",
            "Per avere {o} servono {a} euro; {m} ne possiede {b} e ogni settimana ne mette via {c}. "
            "Quante settimane deve aspettare?",
            "Nel salvadanaio di {n} ci sono {b} euro. Con {c} euro in più ogni settimana, in quante settimane "
            "arriva ai {a} euro che costa {o}?",
        ),
    ),
    Family(
        "perimetro",
        "a rectangle's sides, what is its perimeter?",
        2,
        _ints(a=(3, 20), b=(3, 20)),
        lambda a, b: 2 * (a + b),
        ("cortile", "campo", "giardino"),
        (
            "Un {o} rettangolare è lungo {a} metri e largo {b} metri. Quanti metri misura il perimetro?",
            "{n} mette una rete tutto intorno a un {o} rettangolare di {a} metri per {b}. Quanti metri servono?",
            "Quanti metri fa {m}, se a {c} gira una volta intorno a un {o} rettangolare con i lati di {a} e {b} metri?",
        ),
    ),
    Family(
        "area",
        "a rectangle's sides, what is its area?",
        1,
        _ints(a=(3, 12), b=(3, 12)),
        lambda a, b: a * b,
        ("orto", "terrazzo", "campo", "salone"),
        (
            "Un {o} rettangolare è lungo {a} metri e largo {b} metri. Quanti metri quadrati misura?",
            "Qual è l'area, in metri quadrati, di un {o} di {a} metri per {b}?",
            "{n} vuole piastrellare un {o} con i lati di {a} e {b} metri: quanti metri quadrati copre?",
            "A {c} {m} affitta un {o} rettangolare, lungo {a} metri e largo {b}. Quanti metri quadrati sono?",
        ),
    ),
    Family(
        "perse",
        "had some and lost some, how many are left?",
        1,
        lambda r: {"b": (b := r.randint(3, 20)), "a": b + r.randint(3, 40)},
        lambda a, b: a - b,
        ("figurine", "biglie", "monete", "conchiglie"),
        (
            "{n} aveva {a} {o} e ne ha perse {b}. Quante {o} ha ancora?",
            "Delle sue {a} {o} {m} ne regala {b} a un'amica di {c}: quante ne rimangono?",
            "Quante {o} restano a {n}, se da {a} ne toglie {b}?",
            "Nella scatola c'erano {a} {o}. Oggi ne mancano {b}. Quante {o} ci sono ora?",
        ),
    ),
    Family(
        "scambi",
        "gave some and got some, how many in the end?",
        2,
        lambda r: {"a": r.randint(15, 40), "b": r.randint(3, 12), "c": r.randint(3, 12)},
        lambda a, b, c: a - b + c,
        ("figurine", "biglie", "cartoline", "spille"),
        (
            "{n} ha {a} {o}, ne dà {b} a {m} e ne riceve {c}. Quante {o} ha alla fine?",
            "Prima dello scambio {m} possiede {a} {o}. Ne cede {b}, poi ne ottiene {c}: quante {o} possiede adesso?",
            "A una fiera di {c_} {n} arriva con {a} {o}, ne vende {b} e ne compra {c}. Con quante {o} torna a casa?",
        ),
    ),
    Family(
        "litri",
        "so many bottles of this size, how many litres?",
        1,
        _ints(a=(2, 12), b=(2, 6)),
        lambda a, b: a * b,
        ("acqua", "latte", "olio", "succo"),
        (
            "{n} porta a casa {a} bottiglie di {o} da {b} litri. Quanti litri sono?",
            "Ogni tanica contiene {b} litri di {o}: quanti litri ci sono in {a} taniche?",
            "Per la festa di {c} servono {a} recipienti di {o}, ciascuno da {b} litri. Quanti litri di {o} in tutto?",
            "{m} riempie {a} brocche versando {b} litri di {o} in ognuna. Quanti litri usa?",
        ),
    ),
    Family(
        "meta",
        "half go away, how many stay?",
        1,
        lambda r: {"a": 2 * r.randint(3, 40)},
        lambda a: a / 2,
        ("alunni", "turisti", "operai", "soci"),
        (
            "In un gruppo ci sono {a} {o}. La metà va via. Quanti {o} rimangono?",
            "{n} conta {a} {o}; solo metà di loro arriva da {c}. Quanti {o} arrivano da lì?",
            "Quanti sono la metà di {a} {o}?",
            "Dei {a} {o} della lista di {m} ne è presente la metà esatta. Quanti sono presenti?",
        ),
    ),
    Family(
        "triplo",
        "three times as many, how many?",
        1,
        _ints(a=(3, 30)),
        lambda a: 3 * a,
        ("libri", "dischi", "giochi", "quadri"),
        (
            "{n} ha {a} {o}. {m} ne ha il triplo. Quanti {o} ha {m}?",
            "Quanti {o} possiede chi ne ha tre volte tanti quanti {n}, che ne ha {a}?",
            "Nella casa di {c} ci sono {a} {o}; in quella di {m} tre volte tanti. Quanti {o} ci sono da {m}?",
        ),
    ),
    Family(
        "classi",
        "so many classes of this size, how many in all?",
        1,
        _ints(a=(2, 9), b=(10, 25)),
        lambda a, b: a * b,
        ("alunni", "ragazzi", "studenti"),
        (
            "Una scuola ha {a} classi con {b} {o} ciascuna. Quanti {o} ci sono?",
            "Alla gita di {c} partecipano {a} classi, tutte di {b} {o}: quanti {o} partono?",
            "In ognuna delle {a} aule {n} trova {b} {o}. Quanti {o} trova in totale?",
            "{b} {o} per classe, {a} classi: quanti {o} deve chiamare {m}?",
        ),
    ),
    Family(
        "tavoli",
        "guests and seats to a table, how many tables?",
        1,
        _times("a", (3, 9), (4, 8)),
        lambda a, b: a / b,
        ("matrimonio", "compleanno", "battesimo"),
        (
            "Al {o} di {n} ci sono {a} invitati. Ogni tavolo ha {b} posti. Quanti tavoli servono?",
            "Per un {o} a {c} {m} sistema {a} persone, {b} per tavolo: quanti tavoli apparecchia?",
            "Quanti tavoli da {b} posti occupano i {a} ospiti di un {o}?",
        ),
    ),
    Family(
        "fette",
        "cut into slices and some eaten, how many slices are left?",
        2,
        _ints(a=(2, 5), b=(6, 10), c=(2, 9)),
        lambda a, b, c: a * b - c,
        ("torte", "pizze", "crostate", "focacce"),
        (
            "{n} taglia {a} {o} in {b} fette ciascuna. Se ne mangiano {c}. Quante fette restano?",
            "Ci sono {a} {o} da {b} fette; gli amici di {m} ne prendono {c}: quante fette avanzano?",
            "Alla sagra di {c_} si dividono {a} {o}, ognuna in {b} fette, e subito se ne vendono {c}. "
            "Quante fette rimangono?",
        ),
    ),
    Family(
        "benzina",
        "price of a litre, how much for several?",
        1,
        _ints(a=(5, 40), b=(2, 3)),
        lambda a, b: a * b,
        ("benzina", "vernice", "miscela"),
        (
            "Un litro di {o} costa {b} euro. Quanto spende {n} per {a} litri, in euro?",
            "{m} compra {a} litri di {o} a {b} euro il litro: quanti euro paga?",
            "A {c} la {o} si vende a {b} euro al litro e {n} ne vuole {a} litri. Qual è la spesa in euro?",
        ),
    ),
    Family(
        "biglietti",
        "tickets for adults and for children, how much in all?",
        3,
        _ints(a=(2, 4), b=(6, 12), c=(2, 4), d=(2, 5)),
        lambda a, b, c, d: a * b + c * d,
        ("museo", "teatro", "circo", "parco"),
        (
            "Al {o} il biglietto costa {b} euro per gli adulti e {d} euro per i bambini. "
            "Quanto pagano {a} adulti e {c} bambini, in euro?",
            "{n} entra al {o} di {c_} con un gruppo: {a} adulti a {b} euro l'uno e {c} bambini a {d} euro l'uno. "
            "Quanti euro spende il gruppo?",
            "Per il {o} servono {a} biglietti interi da {b} euro e {c} ridotti da {d} euro. Qual è il totale in euro?",
        ),
    ),
    Family(
        "filari",
        "rows of plants and some more, how many plants?",
        2,
        _ints(a=(3, 8), b=(4, 10), c=(2, 9)),
        lambda a, b, c: a * b + c,
        ("viti", "rose", "piantine", "palme"),
        (
            "{n} pianta {a} file di {b} {o} e altre {c} {o} vicino a casa. Quante piante sono?",
            "Nel podere di {c_} ci sono {c} {o} isolate e {a} file, ognuna di {b}. Quante {o} ci sono in tutto?",
            "Quante {o} ha {m}, se ne ha {b} in ciascuna delle {a} file e {c} nell'orto?",
        ),
    ),
    Family(
        "settimane",
        "how many days are so many weeks?",
        1,
        _ints(a=(2, 12)),
        lambda a: 7 * a,
        ("viaggio", "corso", "ricovero", "cantiere"),
        (
            "Quanti giorni sono {a} settimane di {o}?",
            "Il {o} di {n} dura {a} settimane intere. Quanti giorni dura?",
            "{m} segna sul calendario {a} settimane di {o} a {c}: quanti giorni segna?",
        ),
    ),
    Family(
        "dozzine",
        "how many are so many dozens?",
        1,
        _ints(a=(2, 9)),
        lambda a: 12 * a,
        ("uova", "rose", "matite", "paste"),
        (
            "{n} compra {a} dozzine di {o}. Quante {o} sono?",
            "Quante {o} ci sono in {a} dozzine?",
            "Un negozio di {c} consegna a {m} {a} dozzine di {o}: quante {o} riceve?",
        ),
    ),
    Family(
        "corda",
        "cut into equal pieces, how long is each?",
        1,
        _times("a", (2, 12), (2, 9)),
        lambda a, b: a / b,
        ("corda", "nastro", "filo", "tubo"),
        (
            "Un rotolo di {o} lungo {a} metri viene tagliato in {b} pezzi uguali. Quanti metri misura ogni pezzo?",
            "{n} fa {b} parti uguali da {a} metri di {o}: quanto è lunga ciascuna, in metri?",
            "Quanti metri di {o} spettano a ognuna delle {b} squadre di {c}, se {m} ne divide {a} in parti uguali?",
        ),
    ),
    Family(
        "vasche",
        "so many lengths of a pool, how many metres?",
        1,
        lambda r: {"a": r.randint(4, 20), "b": r.choice([20, 25, 50])},
        lambda a, b: a * b,
        ("piscina", "vasca", "pista"),
        (
            "La {o} è lunga {b} metri e {n} la percorre {a} volte. Quanti metri fa?",
            "Quanti metri copre {m}, che a {c} fa {a} lunghezze di una {o} da {b} metri?",
            "{a} lunghezze in una {o} di {b} metri: a quanti metri corrispondono per {n}?",
        ),
    ),
    Family(
        "media",
        "three marks, what is their mean?",
        2,
        _mean,
        lambda a, b, c: (a + b + c) / 3,
        ("matematica", "storia", "inglese", "scienze"),
        (
            "In {o} {n} ha preso {a}, {b} e {c}. Qual è la media dei tre voti?",
            "I voti di {m} in {o} sono {b}, {a} e {c}: quanto fa la loro media?",
            "Calcola la media dei voti {c}, {b} e {a} che {n} ha avuto in {o}.",
        ),
    ),
)

DEV = (
    Family(
        "palline",
        "scoops on every cup, how many scoops?",
        1,
        _ints(a=(2, 9), b=(2, 4)),
        lambda a, b: a * b,
        ("coni", "gelati", "bicchierini"),
        (
            "In gelateria {n} prepara {a} {o} con {b} palline ognuno. Quante palline serve?",
            "Un gruppo di {c} ordina {a} {o} da {b} palline di gelato: quante palline occorrono?",
            "Quante palline di gelato ci sono in {a} {o}, se in ciascuno {m} ne mette {b}?",
            "{a} {o}, {b} palline per ognuno. Quante palline conta {n}?",
        ),
    ),
    Family(
        "vagone",
        "some get off, how many go on?",
        1,
        lambda r: {"b": (b := r.randint(5, 30)), "a": b + r.randint(5, 50)},
        lambda a, b: a - b,
        ("vagone", "treno", "traghetto", "battello"),
        (
            "A bordo di un {o} viaggiano {a} persone. A {c} ne scendono {b}. Quante proseguono?",
            "Quanti passeggeri restano sul {o}, se dei {a} saliti con {n} ne scendono {b}?",
            "{m} parte in {o} insieme ad altri: sono {a} in tutto. Alla prima fermata {b} se ne vanno. Quanti restano?",
        ),
    ),
    Family(
        "conto",
        "a bill split equally, how much for each?",
        1,
        _times("a", (5, 20), (2, 8)),
        lambda a, b: a / b,
        ("trattoria", "osteria", "pizzeria"),
        (
            "In {o} il conto è di {a} euro. {n} e gli altri sono {b} e pagano parti uguali. Quanti euro a testa?",
            "Cena in una {o} di {c}: {a} euro divisi per {b} amici. Quanto versa ciascuno, in euro?",
            "Se {b} colleghi si dividono {a} euro di {o}, quanti euro mette {m}?",
        ),
    ),
    Family(
        "palestra",
        "so much a month, how much in several months?",
        1,
        _ints(a=(20, 50), b=(2, 9)),
        lambda a, b: a * b,
        ("palestra", "piscina", "scuola di ballo"),
        (
            "La {o} costa {a} euro al mese. Quanto spende {n} in {b} mesi, in euro?",
            "{m} frequenta una {o} di {c} per {b} mesi a {a} euro mensili: qual è la spesa totale in euro?",
            "Quanti euro servono per {b} mesi di {o}, se ogni mese se ne pagano {a}?",
        ),
    ),
    Family(
        "nastro",
        "ribbon less a piece for each, how much is left?",
        2,
        lambda r: {"b": (b := r.randint(2, 6)), "c": (c := r.randint(10, 30)), "a": b * c + r.randint(5, 60)},
        lambda a, b, c: a - b * c,
        ("pacchi", "cesti", "mazzi"),
        (
            "{n} ha {a} centimetri di nastro e per ognuno di {b} {o} ne usa {c}. Quanti centimetri avanzano?",
            "Servono {c} cm di nastro per decorare uno dei {b} {o} di {m}. Il rotolo è di {a} cm: quanti cm restano?",
            "Da un nastro di {a} centimetri si tagliano {b} strisce da {c} per i {o} della fiera di {c_}. "
            "Quanto nastro rimane, in centimetri?",
        ),
    ),
    Family(
        "cassette",
        "so many crates of this weight, how many kilos?",
        1,
        _ints(a=(3, 12), b=(5, 20)),
        lambda a, b: a * b,
        ("uva", "olive", "ciliegie", "zucche"),
        (
            "{n} riempie {a} cassette di {o} da {b} chili. Quanti chili raccoglie?",
            "Nella campagna di {c} ogni cassetta di {o} pesa {b} kg: quanto pesano {a} cassette?",
            "Il camion di {m} porta {a} cassette, ciascuna con {b} chili di {o}. Quanti chili sono?",
        ),
    ),
    Family(
        "prestiti",
        "some lent and some returned, how many are there?",
        2,
        lambda r: {"a": r.randint(30, 90), "b": r.randint(5, 20), "c": r.randint(5, 20)},
        lambda a, b, c: a - b + c,
        ("libri", "film", "giochi", "attrezzi"),
        (
            "In biblioteca ci sono {a} {o}. Ne vengono prestati {b} e ne tornano {c}. Quanti {o} ci sono?",
            "{n} al mattino conta {a} {o} sugli scaffali: {b} escono, {c} rientrano. Quanti ne conta alla sera?",
            "Nella sede di {c_} c'erano {a} {o}; dopo {b} prestiti e {c} restituzioni quanti {o} trova {m}?",
        ),
    ),
    Family(
        "gradi",
        "warmer by so many degrees, what temperature?",
        1,
        _ints(a=(5, 20), b=(3, 15)),
        lambda a, b: a + b,
        ("mattina", "notte", "giornata"),
        (
            "A {c} la temperatura all'inizio della {o} è di {a} gradi; più tardi sale di {b}. Quanti gradi ci sono?",
            "Il termometro di {n} segna {a} gradi e poi cresce di {b}. Che temperatura indica?",
            "Quanti gradi misura {m} nel pomeriggio, se dopo una {o} a {a} gradi ce ne sono {b} in più?",
        ),
    ),
    Family(
        "mance",
        "tips of morning and evening split equally, how much for each?",
        2,
        lambda r: {"c": (c := r.randint(2, 4)), "a": c * r.randint(3, 9), "b": c * r.randint(3, 9)},
        lambda a, b, c: (a + b) / c,
        ("camerieri", "musicisti", "fattorini"),
        (
            "{c} {o} ricevono {a} euro di mance al mattino e {b} la sera e dividono tutto. Quanti euro a testa?",
            "Le mance di due giorni sono {a} e {b} euro; {n} le spartisce fra {c} {o}. Quanti euro tocca a ognuno?",
            "Nel cappello dei {c} {o} di {c_} cadono prima {a} euro e poi {b}. Quanto prende ciascuno, in euro?",
        ),
    ),
)

TEST = (
    Family(
        "pizzeria",
        "so many at this price each, how much in all?",
        1,
        _ints(a=(2, 9), b=(5, 12)),
        lambda a, b: a * b,
        ("pizze", "insalate", "focacce"),
        (
            "{n} ordina {a} {o} a {b} euro l'una. Quanti euro paga?",
            "La cena di {c} consiste in {a} {o}, tutte da {b} euro: quanto fa il conto in euro?",
            "Con {b} euro si compra una delle {o} del menù. Quanti euro servono a {m} per {a}?",
            "Sul foglio dell'ordine si legge: {a} {o}, prezzo {b} euro ciascuna. Qual è il totale in euro?",
        ),
    ),
    Family(
        "parcheggio",
        "places less those taken, how many are free?",
        1,
        lambda r: {"b": (b := r.randint(10, 60)), "a": b + r.randint(5, 60)},
        lambda a, b: a - b,
        ("automobili", "moto", "camper"),
        (
            "Un parcheggio ha {a} posti; {b} sono occupati da {o}. Quanti posti sono liberi?",
            "A {c} {n} gestisce {a} posti per {o} e al momento ne ha dati via {b}. Quanti può ancora darne?",
            "Quanti spazi vuoti vede {m} in un garage da {a} posti con dentro {b} {o}?",
        ),
    ),
    Family(
        "corsa",
        "kilometres every day, how many in so many days?",
        1,
        _ints(a=(3, 15), b=(2, 9)),
        lambda a, b: a * b,
        ("corre", "pedala", "cammina"),
        (
            "{n} {o} per {a} chilometri ogni giorno. Quanti chilometri fa in {b} giorni?",
            "Preparando la gara di {c} {m} {o} {a} km a ogni allenamento: quanti km sono dopo {b} allenamenti?",
            "In {b} uscite da {a} chilometri quanta strada percorre chi {o} con {n}, in chilometri?",
        ),
    ),
    Family(
        "mazzi",
        "flowers into bunches, how many bunches?",
        1,
        _times("a", (2, 9), (3, 9)),
        lambda a, b: a / b,
        ("tulipani", "garofani", "gigli"),
        (
            "Il fioraio ha {a} {o} e fa mazzi da {b}. Quanti mazzi prepara?",
            "{n} lega {b} {o} per volta: da {a} {o} quanti mazzi ottiene?",
            "Per la piazza di {c} {m} distribuisce {a} {o} in vasi che ne contengono {b}. Quanti vasi riempie?",
        ),
    ),
    Family(
        "orchestra",
        "rows of so many, how many in all?",
        1,
        _ints(a=(3, 9), b=(4, 15)),
        lambda a, b: a * b,
        ("violinisti", "cantori", "ballerini"),
        (
            "Sul palco ci sono {a} file di {b} {o}. Quanti {o} sono?",
            "Il maestro {n} dispone i {o} in {a} righe, {b} in ogni riga: quanti {o} dirige?",
            "Allo spettacolo di {c} {m} fotografa {a} gruppi, ognuno formato da {b} {o}. Quanti {o} si vedono?",
        ),
    ),
    Family(
        "cinema",
        "several tickets paid with a banknote, how much change?",
        2,
        lambda r: {"a": r.choice([20, 50]), "b": r.randint(2, 3), "c": r.randint(4, 6)},
        lambda a, b, c: a - b * c,
        ("cinema", "luna park", "concerto"),
        (
            "Per il {o} {n} compra {b} biglietti da {c} euro e paga con {a} euro. Quanti euro di resto ha?",
            "{m} entra al {o} di {c_} con {a} euro e prende {b} ingressi a {c} euro l'uno: quanti euro restano?",
            "Da una banconota di {a} euro si pagano {b} posti al {o}, ciascuno {c} euro. Quanto avanza, in euro?",
        ),
    ),
    Family(
        "galline",
        "eggs every day, how many in so many days?",
        1,
        _ints(a=(3, 15), b=(2, 10)),
        lambda a, b: a * b,
        ("galline", "oche", "anatre", "quaglie"),
        (
            "Le {o} di {n} fanno {a} uova al giorno. Quante uova fanno in {b} giorni?",
            "In una fattoria di {c} si raccolgono {a} uova di {o} ogni mattina: quante sono in {b} mattine?",
            "Dopo {b} giorni quante uova ha {m}, le cui {o} ne depongono {a} al giorno?",
        ),
    ),
    Family(
        "trasloco",
        "some carried already, how many are missing?",
        1,
        lambda r: {"b": (b := r.randint(5, 30)), "a": b + r.randint(5, 40)},
        lambda a, b: a - b,
        ("scatoloni", "mobili", "sacchi"),
        (
            "Per il trasloco {n} deve portare {a} {o}. Ne ha già portati {b}. Quanti ne mancano?",
            "Il furgone diretto a {c} ha caricato {b} {o} su {a}: quanti restano a terra?",
            "Di {a} {o} da spostare {m} ne ha sistemati {b}. Quanti {o} deve ancora sistemare?",
        ),
    ),
    Family(
        "coro",
        "women, men and children, how many people?",
        2,
        _ints(a=(5, 20), b=(5, 20), c=(3, 12)),
        lambda a, b, c: a + b + c,
        ("coro", "circolo", "corteo"),
        (
            "Nel {o} ci sono {a} donne, {b} uomini e {c} bambini. Quante persone ci sono?",
            "Il {o} di {c_} è formato da {b} uomini, {c} bambini e {a} donne: quanti sono in tutto?",
            "{n} iscrive al {o} prima {a} adulti, poi altri {b}, infine {c} ragazzi. Quanti iscritti ha il {o}?",
        ),
    ),
    Family(
        "pillole",
        "so many a day, how many in several days?",
        1,
        _ints(a=(2, 4), b=(5, 20)),
        lambda a, b: a * b,
        ("compresse", "capsule", "gocce"),
        (
            "Il medico dice a {n} di prendere {a} {o} al giorno per {b} giorni. Quante {o} prende?",
            "Una cura di {b} giorni prevede {a} {o} quotidiane: quante {o} servono a {m}?",
            "Quante {o} deve vendere la farmacia di {c} per {b} giorni di terapia, se la dose è di {a} al giorno?",
        ),
    ),
    Family(
        "noleggio",
        "hired by the hour, how much for several hours?",
        1,
        _ints(a=(2, 8), b=(3, 15)),
        lambda a, b: a * b,
        ("una bici", "una canoa", "un monopattino"),
        (
            "Noleggiare {o} costa {b} euro all'ora. Quanto paga {n} per {a} ore, in euro?",
            "{m} tiene {o} per {a} ore, al prezzo di {b} euro ogni ora: quanti euro deve?",
            "Al lago di {c} {o} si affitta a {b} euro l'ora. Quanti euro servono per {a} ore?",
        ),
    ),
    Family(
        "mattoni",
        "rows of bricks less the broken ones, how many are left?",
        2,
        _ints(a=(3, 9), b=(5, 10), c=(2, 9)),
        lambda a, b, c: a * b - c,
        ("mattoni", "blocchi", "sassi"),
        (
            "{n} posa {a} file di {b} {o}, ma {c} sono rotti e li toglie. Quanti {o} restano?",
            "Un muro di {c_} ha {a} strati da {b} {o}; ne cadono {c}: quanti {o} rimangono al loro posto?",
            "Arrivano {a} bancali con {b} {o} ciascuno e {m} ne scarta {c}. Quanti {o} può usare?",
        ),
    ),
    Family(
        "zaino",
        "three loads, what do they weigh together?",
        2,
        _ints(a=(2, 9), b=(2, 9), c=(2, 9)),
        lambda a, b, c: a + b + c,
        ("borsone", "carrello", "baule"),
        (
            "Nel {o} {n} mette {a} kg di viveri, {b} kg di attrezzi e {c} kg di vestiti. Quanti chili pesa il carico?",
            "Il {o} di {m} contiene una tenda da {a} chili, una borsa da {b} e una coperta da {c}: quanti chili sono?",
            "Partendo da {c_} si caricano sul {o} tre pacchi di {a}, {b} e {c} chili. Qual è il peso totale in chili?",
        ),
    ),
    Family(
        "mercatino",
        "sold at this price each less the stall's cost, how much is earned?",
        2,
        lambda r: {"a": r.randint(3, 9), "b": r.randint(2, 6), "c": r.randint(2, 5)},
        lambda a, b, c: a * b - c,
        ("libri", "giocattoli", "vasi", "cappelli"),
        (
            "Al mercatino {n} vende {a} {o} a {b} euro l'uno e spende {c} euro per il posto. Quanti euro guadagna?",
            "{m} incassa {b} euro per ciascuno dei {a} {o} venduti a {c_}, poi ne paga {c} di parcheggio. "
            "Quanti euro restano?",
            "{a} {o} venduti a {b} euro, meno {c} euro di spese: quanto rimane a {n}, in euro?",
        ),
    ),
    Family(
        "bicchieri",
        "a jug poured into glasses, how many glasses?",
        1,
        lambda r: {"b": (b := r.choice([20, 25, 30])), "a": b * r.randint(3, 9)},
        lambda a, b: a / b,
        ("limonata", "aranciata", "sciroppo"),
        (
            "Una caraffa contiene {a} centilitri di {o}. Ogni bicchiere ne tiene {b}. Quanti bicchieri riempie {n}?",
            "{m} versa {a} cl di {o} in bicchieri da {b} cl: quanti bicchieri pieni ottiene?",
            "Alla festa di {c} quanti bicchieri da {b} centilitri si servono con {a} centilitri di {o}?",
        ),
    ),
    Family(
        "dislivello",
        "two heights, how far up?",
        1,
        lambda r: {"b": (b := r.randint(5, 12) * 100), "a": b + r.randint(2, 9) * 100},
        lambda a, b: a - b,
        ("rifugio", "passo", "santuario"),
        (
            "Il {o} si trova a {a} metri e {n} parte da {b} metri. Di quanti metri sale?",
            "Da {c}, a {b} metri di quota, {m} raggiunge un {o} a {a} metri: qual è il dislivello in metri?",
            "Quanti metri più in alto del paese, posto a {b}, sta il {o}, che è a {a} metri?",
        ),
    ),
    Family(
        "abbonamento",
        "so much a month, how much a year?",
        1,
        _ints(a=(5, 40)),
        lambda a: 12 * a,
        ("treno", "giornale", "teatro", "telefono"),
        (
            "L'abbonamento al {o} costa {a} euro al mese. Quanto costa in un anno, in euro?",
            "{n} paga {a} euro ogni mese per il {o}: quanti euro sono dopo dodici mesi?",
            "A {c} {m} spende per il {o} {a} euro mensili. Qual è la spesa annuale in euro?",
        ),
    ),
    Family(
        "semi",
        "seeds into pots, how many pots?",
        1,
        _times("a", (3, 9), (3, 9)),
        lambda a, b: a / b,
        ("girasole", "zucca", "basilico", "lino"),
        (
            "{n} ha {a} semi di {o} e ne mette {b} in ogni vasetto. Quanti vasetti usa?",
            "Quanti vasetti servono per {a} semi di {o}, se in ciascuno {m} ne pianta {b}?",
            "Da una bustina con {a} semi di {o} la scuola di {c} prepara vasetti da {b} semi: quanti ne prepara?",
        ),
    ),
)

//! Just enough of `PromQL` to tell what a query asks for. What is beyond it is an error: teach it. The slow lane has
//! `promtool` read the same queries.

/// What follows names and numbers in a query, longest first.
const SYMBOLS: [&str; 18] =
    ["=~", "!~", "!=", "==", ">=", "<=", ">", "<", "=", "+", "-", "*", "/", "(", ")", "{", "}", ","];

/// Binary operators, those that bind least first.
const BINARY: [&[&str]; 5] =
    [&["or"], &["and", "unless"], &["==", "!=", ">=", "<=", ">", "<"], &["+", "-"], &["*", "/"]];

const AGGREGATIONS: [&str; 5] = ["sum", "min", "max", "avg", "count"];

#[derive(Debug)]
pub(super) enum Expr {
    Number(f64),
    Text(String),
    Selector(Selector),
    /// A selector over a range of time.
    Range(Selector),
    Aggregate {
        grouping: Grouping,
        of: Box<Expr>,
    },
    Call {
        function: String,
        arguments: Vec<Expr>,
    },
    Binary {
        operator: String,
        on: Option<Vec<String>>,
        left: Box<Expr>,
        right: Box<Expr>,
    },
}

#[derive(Debug)]
pub(super) enum Grouping {
    All,
    By(Vec<String>),
    Without(Vec<String>),
}

#[derive(Debug)]
pub(super) struct Selector {
    pub(super) name: String,
    pub(super) matchers: Vec<Matcher>,
}

/// `label`, then `=`, `!=`, `=~` or `!~`, then the value.
#[derive(Debug)]
pub(super) struct Matcher {
    pub(super) label: String,
    pub(super) operator: String,
    pub(super) value: String,
}

impl Matcher {
    /// The values that it names: of a regular expression, plain alternatives, so that each can be looked up.
    pub(super) fn values(&self) -> Vec<String> {
        if self.operator.ends_with('~') {
            self.value.split('|').map(str::to_owned).collect()
        } else {
            vec![self.value.clone()]
        }
    }

    pub(super) fn is_match(&self, value: &str) -> bool {
        self.values().iter().any(|known| known == value) != self.operator.starts_with('!')
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Number(f64),
    Text(String),
    Range,
    Symbol(&'static str),
}

pub(super) fn parse(query: &str) -> Result<Expr, String> {
    let mut parser = Parser { rest: tokens(query)? };
    // Taken from the end.
    parser.rest.reverse();
    let expr = parser.binary(0)?;
    match parser.rest.last() {
        None => Ok(expr),
        Some(token) => Err(format!("{token:?} is beyond this test: teach it")),
    }
}

fn tokens(query: &str) -> Result<Vec<Token>, String> {
    let (mut tokens, mut rest) = (Vec::new(), query.trim_start());
    while let Some(first) = rest.chars().next() {
        let is_word = |next: char| next.is_ascii_alphanumeric() || next == '_' || next == ':';
        let (token, length) = if first.is_ascii_digit() {
            // `-` is part of a number after its `e` only.
            let ends = |(at, next): (usize, char)| match next {
                '0'..='9' | '.' | 'e' => None,
                '-' if rest[..at].ends_with('e') => None,
                _ => Some(at),
            };
            let length = rest.char_indices().find_map(ends).unwrap_or(rest.len());
            let number = rest[..length].parse().map_err(|error| format!("{}: {error}", &rest[..length]))?;
            (Token::Number(number), length)
        } else if is_word(first) {
            let length = rest.find(|next| !is_word(next)).unwrap_or(rest.len());
            (Token::Word(rest[..length].to_owned()), length)
        } else if first == '"' {
            // No value of ours holds a quote or a backslash.
            let length = rest[1..].find('"').ok_or("a string without an end")?;
            (Token::Text(rest[1..=length].to_owned()), length + 2)
        } else if first == '[' {
            (Token::Range, rest.find(']').ok_or("a range without an end")? + 1)
        } else {
            let symbol = SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol));
            let symbol = symbol.ok_or_else(|| format!("{first:?} is beyond this test: teach it"))?;
            (Token::Symbol(symbol), symbol.len())
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

struct Parser {
    /// The next token is the last.
    rest: Vec<Token>,
}

impl Parser {
    /// Takes the next token if it is this symbol.
    fn takes(&mut self, symbol: &str) -> bool {
        self.rest.pop_if(|next| matches!(next, Token::Symbol(found) if *found == symbol)).is_some()
    }

    fn expect(&mut self, symbol: &str) -> Result<(), String> {
        if self.takes(symbol) { Ok(()) } else { Err(format!("{:?} where {symbol:?} should be", self.rest.last())) }
    }

    /// Takes the next token if it is one of these words or symbols.
    fn takes_any(&mut self, known: &[&str]) -> Option<String> {
        let next = self.rest.pop_if(|next| match next {
            Token::Word(word) => known.contains(&word.as_str()),
            Token::Symbol(symbol) => known.contains(symbol),
            _ => false,
        });
        match next? {
            Token::Word(word) => Some(word),
            Token::Symbol(symbol) => Some(symbol.to_owned()),
            _ => None,
        }
    }

    fn binary(&mut self, level: usize) -> Result<Expr, String> {
        let Some(operators) = BINARY.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        while let Some(operator) = self.takes_any(operators) {
            if let Some(word) = self.takes_any(&["ignoring", "bool"]) {
                return Err(format!("`{word}` is beyond this test: say `on`"));
            }
            let on = self.takes_any(&["on"]).map(|_| self.labels()).transpose()?;
            if let Some(word) = self.takes_any(&["group_left", "group_right"]) {
                return Err(format!("`{word}` is beyond this test: teach it"));
            }
            let right = self.binary(level + 1)?.into();
            left = Expr::Binary { operator, on, left: left.into(), right };
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr, String> {
        if self.takes("(") {
            let inner = self.binary(0)?;
            self.expect(")")?;
            return Ok(inner);
        }
        match self.rest.pop() {
            Some(Token::Number(number)) => Ok(Expr::Number(number)),
            Some(Token::Text(text)) => Ok(Expr::Text(text)),
            Some(Token::Word(word)) if AGGREGATIONS.contains(&word.as_str()) => self.aggregate(),
            Some(Token::Word(word)) if self.takes("(") => {
                let mut arguments = Vec::new();
                while !self.takes(")") {
                    if !arguments.is_empty() {
                        self.expect(",")?;
                    }
                    arguments.push(self.binary(0)?);
                }
                Ok(Expr::Call { function: word, arguments })
            }
            Some(Token::Word(name)) => {
                let matchers = if self.takes("{") { self.matchers()? } else { Vec::new() };
                let selector = Selector { name, matchers };
                let is_range = self.rest.pop_if(|next| *next == Token::Range).is_some();
                Ok(if is_range { Expr::Range(selector) } else { Expr::Selector(selector) })
            }
            other => Err(format!("{other:?} is beyond this test: teach it")),
        }
    }

    /// What follows `sum` and the like.
    fn aggregate(&mut self) -> Result<Expr, String> {
        let grouping = match self.takes_any(&["by", "without"]).as_deref() {
            Some("by") => Grouping::By(self.labels()?),
            Some(_) => Grouping::Without(self.labels()?),
            None => Grouping::All,
        };
        self.expect("(")?;
        let of = self.binary(0)?.into();
        self.expect(")")?;
        Ok(Expr::Aggregate { grouping, of })
    }

    /// `(a, b)`
    fn labels(&mut self) -> Result<Vec<String>, String> {
        self.expect("(")?;
        let mut labels = Vec::new();
        while !self.takes(")") {
            labels.push(self.word()?);
            self.takes(",");
        }
        Ok(labels)
    }

    /// `a="b", c=~"d"}`
    fn matchers(&mut self) -> Result<Vec<Matcher>, String> {
        let mut matchers = Vec::new();
        while !self.takes("}") {
            let label = self.word()?;
            let operator = self.takes_any(&["=", "!=", "=~", "!~"]).ok_or("a label without a value")?;
            let Some(Token::Text(value)) = self.rest.pop() else { return Err(format!("{label} has no value")) };
            matchers.push(Matcher { label, operator, value });
            self.takes(",");
        }
        Ok(matchers)
    }

    fn word(&mut self) -> Result<String, String> {
        match self.rest.pop() {
            Some(Token::Word(word)) => Ok(word),
            other => Err(format!("{other:?} where a label should be")),
        }
    }
}

#[test]
fn what_binds_more_is_read_first() {
    let shown = |query: &str| -> String {
        fn show(expr: &Expr) -> String {
            match expr {
                Expr::Number(number) => number.to_string(),
                Expr::Selector(selector) => selector.name.clone(),
                Expr::Binary { operator, left, right, .. } => format!("({} {operator} {})", show(left), show(right)),
                other => format!("{other:?}"),
            }
        }
        show(&parse(query).unwrap())
    };
    assert_eq!(shown("a / b - c > 1e-9 and d"), "((((a / b) - c) > 0.000000001) and d)");
    assert_eq!(shown("a - b - (c or d)"), "((a - b) - (c or d))");
    for bad in ["a)", "(a", "a b", "a{b}", "a{b=\"c\"", "sum a", "a >", "a + ignoring (b) c", "-a", "a offset b", ""] {
        parse(bad).expect_err(bad);
    }
}

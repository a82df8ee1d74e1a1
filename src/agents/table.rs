//! Dataset files: CSV of numbers under `# key: value` comments and one line of column names.

use super::error::AgentError;

/// A parsed dataset that knows the line of everything in it.
pub(super) struct Table<'a> {
    /// `# key: value` lines above the column names.
    comments: Vec<(&'a str, &'a str, usize)>,
    pub columns: Vec<&'a str>,
    /// Line of the column names.
    pub header_line: usize,
    pub rows: Vec<Row>,
}

/// One line of finite numbers, as many as there are columns.
pub(super) struct Row {
    pub line: usize,
    pub values: Vec<f64>,
}

impl<'a> Table<'a> {
    pub fn parse(text: &'a str) -> Result<Self, AgentError> {
        let mut comments = Vec::new();
        let mut columns: Option<(Vec<&str>, usize)> = None;
        let mut rows = Vec::new();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (line, content) in text.lines().enumerate().map(|(index, content)| (index + 1, content.trim())) {
            if content.is_empty() {
                continue;
            }
            if let Some(comment) = content.strip_prefix('#') {
                if let (None, Some((key, value))) = (&columns, comment.split_once(':')) {
                    comments.push((key.trim(), value.trim(), line));
                }
                continue;
            }
            match &columns {
                None => columns = Some((content.split(',').map(str::trim).collect(), line)),
                Some((columns, _)) => rows.push(Row { line, values: numbers(content, columns, line)? }),
            }
        }
        let (columns, header_line) = columns.ok_or_else(|| AgentError::dataset(None, "the file is empty"))?;
        if rows.is_empty() {
            return Err(AgentError::dataset(header_line, "no rows follow the column names"));
        }
        Ok(Self { comments, columns, header_line, rows })
    }

    /// Refuses column names other than `expected`, in order.
    pub fn expect_columns(&self, expected: &[&str]) -> Result<(), AgentError> {
        if self.columns == expected {
            return Ok(());
        }
        Err(AgentError::dataset(self.header_line, format!("the columns must be {}", expected.join(","))))
    }

    /// The positive number of the comment `# key: number`.
    pub fn positive(&self, key: &str) -> Result<f64, AgentError> {
        let Some(&(_, value, line)) = self.comments.iter().find(|(name, ..)| *name == key) else {
            return Err(AgentError::dataset(None, format!("the comment `# {key}: <number>` is missing")));
        };
        value
            .parse()
            .ok()
            .filter(|number: &f64| number.is_finite() && *number > 0.0)
            .ok_or_else(|| AgentError::dataset(line, format!("{key} must be a number above 0")))
    }
}

impl Row {
    /// The value of column `index` as an antenna number, 0 to 255.
    pub fn antenna(&self, index: usize) -> Result<usize, AgentError> {
        let value = self.values[index];
        if value.fract() == 0.0 && (0.0..=255.0).contains(&value) {
            return Ok(value as usize);
        }
        Err(AgentError::dataset(self.line, "an antenna must be an integer from 0 to 255"))
    }
}

fn numbers(content: &str, columns: &[&str], line: usize) -> Result<Vec<f64>, AgentError> {
    let cells = content.split(',').count();
    if cells != columns.len() {
        return Err(AgentError::dataset(line, format!("{cells} values for {} columns", columns.len())));
    }
    content
        .split(',')
        .zip(columns)
        .map(|(cell, column)| {
            cell.trim()
                .parse()
                .ok()
                .filter(|value: &f64| value.is_finite())
                .ok_or_else(|| AgentError::dataset(line, format!("{column} must be a finite number")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        Table::parse(text).err().unwrap().to_string()
    }

    #[test]
    fn reads_comments_columns_and_rows_with_their_lines() {
        let table = Table::parse("\u{feff}# step: 2.5\r\n\r\na, b\r\n1,-2e3\r\n# aside\r\n3,4\r\n").unwrap();
        assert_eq!(table.positive("step").unwrap(), 2.5);
        table.expect_columns(&["a", "b"]).unwrap();
        assert_eq!((table.rows[0].line, table.rows[0].values.as_slice()), (4, [1.0, -2000.0].as_slice()));
        assert_eq!((table.rows[1].line, table.rows.len()), (6, 2));
    }

    #[test]
    fn names_the_line_of_what_is_wrong() {
        assert_eq!(message(""), "dataset: the file is empty");
        assert_eq!(message("# x\na,b\n"), "dataset line 2: no rows follow the column names");
        assert_eq!(message("a,b\n1,2\n1,2,3\n"), "dataset line 3: 3 values for 2 columns");
        assert_eq!(message("a,b\n1,x\n"), "dataset line 2: b must be a finite number");
        assert_eq!(message("a,b\n1,NaN\n"), "dataset line 2: b must be a finite number");
        assert_eq!(message("a,b\ninf,1\n"), "dataset line 2: a must be a finite number");
        let table = Table::parse("# step: -1\na,b\n1.5,256\n").unwrap();
        assert_eq!(table.positive("step").unwrap_err().to_string(), "dataset line 1: step must be a number above 0");
        assert!(table.positive("width").unwrap_err().to_string().contains("# width: <number>"));
        assert!(table.rows[0].antenna(0).is_err() && table.rows[0].antenna(1).is_err());
        assert!(table.expect_columns(&["a"]).unwrap_err().to_string().starts_with("dataset line 2: "));
    }
}

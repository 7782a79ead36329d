//! What a request must be, field by field.

use cappy_proto::v1;
use tonic::Status;

use super::{loading::Named, status::invalid};

/// Rows of one request.
const MAX_ROWS: usize = 4096;

/// Responses of one row.
const MAX_RESPONSES: usize = 4096;

/// Pairs of one request.
const MAX_PAIRS: usize = 16_384;

/// Bytes of one text. A model reads the first few hundred tokens of it.
const MAX_TEXT_BYTES: usize = 4 << 20;

/// Bytes of a name.
const MAX_NAME_BYTES: usize = 4096;

/// Number formats that a caller may ask for.
const DTYPES: [&str; 6] = ["", "auto", "f32", "bf16", "f16", "int8"];

/// A model's name with the backend and number format that it shall run in.
pub fn named(field: &str, model: &str, backend: &str, dtype: &str) -> Result<Named, Status> {
    if model.is_empty() {
        return Err(invalid(field, "is empty: name a directory, a hub id, a short name or a model id"));
    }
    for (field, text) in [(field, model), ("backend", backend)] {
        if text.contains('\0') || text.len() > MAX_NAME_BYTES {
            return Err(invalid(field, format!("holds a NUL or is longer than {MAX_NAME_BYTES} bytes")));
        }
    }
    if !DTYPES.contains(&dtype) {
        return Err(invalid("dtype", "is none of auto, f32, bf16, f16, int8"));
    }
    Ok(Named { model: model.to_owned(), backend: backend.to_owned(), dtype: dtype.to_owned() })
}

fn text(field: impl Fn() -> String, text: &str) -> Result<(), Status> {
    if text.contains('\0') {
        return Err(invalid(&field(), "holds a NUL character"));
    }
    if text.len() > MAX_TEXT_BYTES {
        let reason = format!("is {} bytes long, {MAX_TEXT_BYTES} are the most", text.len());
        return Err(invalid(&field(), reason));
    }
    Ok(())
}

fn count(field: &str, rows: usize, most: usize) -> Result<(), Status> {
    match rows {
        0 => Err(invalid(field, "there are none")),
        rows if rows > most => {
            Err(invalid(field, format!("there are {rows}, {most} are the most in one request: send several")))
        }
        _ => Ok(()),
    }
}

/// Rows to score; `given`: each must bring responses.
pub fn score_rows(rows: &[v1::ScoreRow], given: bool) -> Result<(), Status> {
    count("rows", rows.len(), MAX_ROWS)?;
    for (index, row) in rows.iter().enumerate() {
        text(|| format!("rows[{index}].instruction"), &row.instruction)?;
        if given || !row.responses.is_empty() {
            count(&format!("rows[{index}].responses"), row.responses.len(), MAX_RESPONSES)?;
        }
        for (place, response) in row.responses.iter().enumerate() {
            text(|| format!("rows[{index}].responses[{place}]"), response)?;
        }
    }
    let pairs: usize = rows.iter().map(|row| row.responses.len()).sum();
    if pairs > MAX_PAIRS {
        let reason = format!("have {pairs} responses, {MAX_PAIRS} are the most in one request: send several");
        return Err(invalid("rows", reason));
    }
    Ok(())
}

/// Instructions to answer.
pub fn instructions(list: &[String]) -> Result<(), Status> {
    count("instructions", list.len(), MAX_ROWS)?;
    let mut all = list.iter().enumerate();
    all.try_for_each(|(index, instruction)| text(|| format!("instructions[{index}]"), instruction))
}

/// Pairs to judge.
pub fn likelihood_rows(rows: &[v1::LogLikelihoodRow]) -> Result<(), Status> {
    count("rows", rows.len(), MAX_ROWS)?;
    for (index, row) in rows.iter().enumerate() {
        text(|| format!("rows[{index}].instruction"), &row.instruction)?;
        text(|| format!("rows[{index}].response"), &row.response)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        let row = |instruction: &str, responses: &[&str]| v1::ScoreRow {
            instruction: instruction.into(),
            responses: responses.iter().map(|&text| text.into()).collect(),
        };
        let long = "x".repeat(MAX_TEXT_BYTES + 1);
        let pair = |instruction: &str, response: &str| v1::LogLikelihoodRow {
            instruction: instruction.into(),
            response: response.into(),
        };
        for (result, field) in [
            (named("scorer", "", "", "").map(drop), "scorer"),
            (named("model", "a\0b", "", "").map(drop), "model"),
            (named("model", "a", "b\0", "").map(drop), "backend"),
            (named("model", "a", "", "f12").map(drop), "dtype"),
            (score_rows(&[], true), "rows"),
            (score_rows(&vec![row("", &["a"]); MAX_ROWS + 1], true), "rows"),
            (score_rows(&[row("a", &["b"]), row("a", &[])], true), "rows[1].responses"),
            (score_rows(&[row("a\0", &["b"])], true), "rows[0].instruction"),
            (score_rows(&[row("a", &["b", "\0"])], true), "rows[0].responses[1]"),
            (score_rows(&[row(&long, &["b"])], true), "rows[0].instruction"),
            (score_rows(&vec![row("a", &["b"; MAX_RESPONSES]); 5], true), "rows"),
            (instructions(&[]), "instructions"),
            (instructions(&["a".into(), "\0".into()]), "instructions[1]"),
            (likelihood_rows(&[]), "rows"),
            (likelihood_rows(&[pair("", ""), pair("", "\0")]), "rows[1].response"),
        ] {
            let status = result.unwrap_err();
            let named = status.get_details_bad_request().unwrap().field_violations[0].field.clone();
            assert_eq!((status.code(), named.as_str()), (tonic::Code::InvalidArgument, field));
        }
        score_rows(&[row("", &[""])], true).unwrap();
        score_rows(&[row("", &[])], false).unwrap();
        instructions(&[String::new()]).unwrap();
        likelihood_rows(&[pair("", "")]).unwrap();
    }
}
